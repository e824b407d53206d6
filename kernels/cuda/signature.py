"""Signature: a kernel's parameters as its source declares them, so that what the host passes cannot drift from it.

Read from the text: the entry's parameter list and the structs it names. Arguments are given by name and come out in the
kernel's order as ctypes values; a name that is missing or unknown is an error and not a wrong number on the device.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from kernels.cuda.source import KernelSource, read_source
from kernels.errors import KernelsError

_SCALARS: Mapping[str, type[Any]] = {
    "s8": ctypes.c_int8, "u8": ctypes.c_uint8, "s16": ctypes.c_int16, "u16": ctypes.c_uint16,
    "s32": ctypes.c_int32, "u32": ctypes.c_uint32, "s64": ctypes.c_int64, "u64": ctypes.c_uint64,
    "float": ctypes.c_float, "int": ctypes.c_int32,
}  # fmt: skip
_COMMENT = re.compile(r"//[^\n]*")
_STRUCT = r"\bstruct\s+(?:alignas\(\d+\)\s*)?{name}\s*\{{(.*?)\}};"
_ARRAY = re.compile(r"(\w+)\[(\d+)\]")
_ENTRY = r"KERNEL\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?{name}\s*\(([^)]*)\)"
_WORDS_IGNORED = re.compile(r"\b(const|__restrict__|__grid_constant__)\b")


@dataclass(frozen=True)
class Signature:
    """Parameters in order, as ctypes types by name; structs are `ctypes.Structure` classes with the source's fields."""

    entry: str
    parameters: tuple[tuple[str, type[Any]], ...]

    def arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """ctypes values in order. A struct may be given as a mapping of its fields, or as a structure of its size. Any
        other object in its place comes out as it is, for the device to encode (`kernels.cuda.launch.TensorMapOf`).

        Absent pointers are null; any other missing name, and any name the kernel does not have, is a `KernelsError`
        (`bad_launch`).
        """
        unknown = sorted(set(values) - {name for name, _ in self.parameters})
        if unknown:
            raise _bad(self.entry, f"has no parameter {', '.join(unknown)}")
        return [_value(self.entry, name, kind, values) for name, kind in self.parameters]


def _value(entry: str, name: str, kind: type[Any], values: Mapping[str, Any]) -> Any:
    if issubclass(kind, ctypes.Structure):
        given = values.get(name, {})
        if isinstance(given, ctypes.Structure):
            if ctypes.sizeof(given) != ctypes.sizeof(kind):
                raise _bad(entry, f"takes {ctypes.sizeof(kind)} bytes for {name}, not {ctypes.sizeof(given)}")
            return given
        if not isinstance(given, Mapping):
            return given
        fields = [field for field, *_ in kind._fields_]
        unknown = sorted(set(given) - set(fields))
        if unknown:
            raise _bad(entry, f"has no field {', '.join(f'{name}.{field}' for field in unknown)}")
        return kind(**given)
    if name not in values and kind is not ctypes.c_uint64:
        raise _bad(entry, f"misses parameter {name}")
    return kind(values.get(name, 0))


def signature_of(source: KernelSource) -> Signature:
    """The signature of a kernel of the package; `KernelsError` (`bad_launch`) where its text cannot be understood."""
    return _signature_in(source.file, source.entry)


@cache
def _signature_in(file: str, entry: str) -> Signature:
    return read_signature(read_source(file), entry)


def read_signature(text: str, entry: str) -> Signature:
    plain = _COMMENT.sub("", text)
    found = re.search(_ENTRY.format(name=re.escape(entry)), plain)
    if found is None:
        raise _bad(entry, "is not declared in its source")
    return Signature(entry, tuple(_parameter(plain, entry, each) for each in found[1].split(",") if each.strip()))


def _parameter(text: str, entry: str, declaration: str) -> tuple[str, type[Any]]:
    words = _WORDS_IGNORED.sub(" ", declaration).replace("*", " * ").split()
    kind = _type(text, entry, words[:-1])
    array = _ARRAY.fullmatch(words[-1])
    return (array[1], kind * int(array[2])) if array else (words[-1], kind)


def _type(text: str, entry: str, words: list[str]) -> type[Any]:
    if "*" in words:
        return ctypes.c_uint64
    if words[0] in _SCALARS:
        return _SCALARS[words[0]]
    found = re.search(_STRUCT.format(name=re.escape(words[0])), text, re.DOTALL)
    if found is None:
        raise _bad(entry, f"takes a {words[0]}, which its source does not define")
    fields: list[tuple[str, type[Any]]] = []
    for statement in found[1].split(";"):
        if not statement.strip() or "(" in statement:
            continue
        first, *rest = statement.split(",")
        name, kind = _parameter(text, entry, first)
        fields += [(name, kind), *((other.strip(), kind) for other in rest)]
    return type(words[0], (ctypes.Structure,), {"_fields_": tuple(fields)})


def _bad(entry: str, what: str) -> KernelsError:
    return KernelsError(
        f"kernel {entry} {what}", hint="host and source belong to one version: reinstall", code="bad_launch"
    )
