"""Dataset file: named arrays read from an `.npz` or `.safetensors` file that nobody trusts.

Sizes are checked against the file's own directory before a single array is allocated, nothing is unpickled, and every
refusal is a `BadSubmission` with code `dataset_unreadable`, `dataset_object_array` or `dataset_too_large`.
"""

from __future__ import annotations

import ast
import json
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from search.errors import BadSubmission

Array = np.ndarray[Any, Any]

_MAX_NPY_HEADER_BYTES = 1 << 16
_READ_BYTES = 1 << 24
_MAX_SAFETENSORS_HEADER_BYTES = 1 << 24
_SAFETENSORS_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
HINT = "save it with numpy.savez(path, input_name=array, …) or safetensors.numpy.save_file(arrays, path)"


@dataclass(frozen=True)
class FileLimits:
    """How much a dataset file may ask for: arrays in it, and bytes they take in memory together."""

    arrays: int = 256
    total_bytes: int = 8 * 10**9


DEFAULT_LIMITS = FileLimits()


def read_arrays(path: Path, limits: FileLimits = DEFAULT_LIMITS) -> dict[str, Array]:
    """The arrays of a dataset file by name; the kind of file is told by its first bytes, not by its name."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise _unreadable(path, error.strerror or type(error).__name__) from error
    if start[:2] == b"PK":
        return _read_npz(path, limits)
    if start[8:9] == b"{":
        return _read_safetensors(path, limits)
    if start[:6] == b"\x93NUMPY":
        raise _unreadable(path, "it is a single .npy array, whose input is not named")
    if start[:1] == b"\x80":
        raise _unreadable(path, "it looks like a pickle, which is never opened")
    raise _unreadable(path, "it is neither .npz nor .safetensors")


def _unreadable(path: Path, why: str) -> BadSubmission:
    return BadSubmission(f"cannot read dataset {path.name}: {why}", hint=HINT, code="dataset_unreadable")


def _check_total(path: Path, arrays: int, total_bytes: int, limits: FileLimits) -> None:
    if arrays > limits.arrays or total_bytes > limits.total_bytes:
        raise BadSubmission(
            f"dataset {path.name} holds {arrays} arrays of {total_bytes} bytes together",
            hint=f"at most {limits.arrays} arrays and {limits.total_bytes} bytes are read; send fewer samples",
            code="dataset_too_large",
        )


def _read_npz(path: Path, limits: FileLimits) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_total(path, len(entries), sum(entry.file_size for entry in entries), limits)
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename or name in arrays:
                    raise _unreadable(path, f"entry {entry.filename!r} is a duplicate or not an .npy array")
                with archive.open(entry) as stream:
                    arrays[name] = _read_npy(path, name, stream, entry.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        # RuntimeError: encrypted entry; NotImplementedError: a compression method Python lacks.
        raise _unreadable(path, str(error) or type(error).__name__) from error
    return arrays


def _read_npy(path: Path, name: str, stream: IO[bytes], size: int) -> Array:
    """One array of an archive, allocated only after its header and its entry agree on the size."""
    magic = stream.read(8)
    if len(magic) < 8 or magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        raise _unreadable(path, f"array {name!r} has no .npy header")
    length_bytes = 2 if magic[6] == 1 else 4
    (header_size,) = struct.unpack("<H" if length_bytes == 2 else "<I", stream.read(length_bytes))
    if header_size > _MAX_NPY_HEADER_BYTES:
        raise _unreadable(path, f"array {name!r} has a header of {header_size} bytes")
    try:
        header = ast.literal_eval(stream.read(header_size).decode("utf-8"))
        descr, fortran, shape = header["descr"], bool(header["fortran_order"]), tuple(header["shape"])
        dtype = np.dtype(descr)
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise _unreadable(path, f"array {name!r} has a broken header") from error
    if dtype.hasobject:
        raise BadSubmission(
            f"array {name!r} of dataset {path.name} holds Python objects, which are never unpickled",
            hint="save plain numbers: numpy.stack the samples to one array of a numeric dtype",
            code="dataset_object_array",
        )
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
        raise _unreadable(path, f"array {name!r} claims the shape {shape}")
    count = math.prod(shape)
    expected = len(magic) + length_bytes + header_size + count * dtype.itemsize
    if expected != size:
        raise _unreadable(path, f"array {name!r} claims {shape} of {dtype}, {expected} bytes, but has {size}")
    values = _fill(path, name, stream, dtype, count)
    return values.reshape(shape, order="F" if fortran else "C")


def _fill(path: Path, name: str, stream: IO[bytes], dtype: np.dtype[Any], count: int) -> Array:
    """`count` values read from the stream into an array of their own, which later stages may hand to torch."""
    if dtype.itemsize == 0:
        raise _unreadable(path, f"array {name!r} has dtype {dtype}")
    data = np.frombuffer(bytearray(count * dtype.itemsize), dtype=np.uint8)
    filled = 0
    while filled < len(data):
        piece = stream.read(min(len(data) - filled, _READ_BYTES))
        if not piece:
            raise _unreadable(path, f"array {name!r} ends after {filled} of {len(data)} bytes")
        data[filled : filled + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        filled += len(piece)
    return data.view(dtype)


def _read_safetensors(path: Path, limits: FileLimits) -> dict[str, Array]:
    file_size = path.stat().st_size
    with path.open("rb") as file:
        (header_size,) = struct.unpack("<Q", file.read(8))
        if header_size > min(_MAX_SAFETENSORS_HEADER_BYTES, file_size - 8):
            raise _unreadable(path, f"its header claims {header_size} bytes of a file of {file_size}")
        try:
            header = json.loads(file.read(header_size))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            spans = {
                name: (str(entry["dtype"]), tuple(map(int, entry["shape"])), tuple(map(int, entry["data_offsets"])))
                for name, entry in entries.items()
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _unreadable(path, "its header is not the safetensors JSON") from error
        _check_total(path, len(spans), file_size, limits)
        arrays: dict[str, Array] = {}
        for name, (code, shape, offsets) in spans.items():
            if len(offsets) != 2:
                raise _unreadable(path, f"tensor {name!r} has malformed offsets")
            start, end = offsets
            if code not in _SAFETENSORS_DTYPES:
                raise BadSubmission(
                    f"tensor {name!r} of dataset {path.name} has dtype {code}",
                    hint=f"numpy can hold {', '.join(_SAFETENSORS_DTYPES)}",
                    code="dataset_dtype_mismatch",
                )
            dtype = np.dtype(_SAFETENSORS_DTYPES[code])
            if min(shape, default=0) < 0 or not 0 <= start <= end <= file_size - 8 - header_size:
                raise _unreadable(path, f"tensor {name!r} lies outside the file")
            if end - start != math.prod(shape) * dtype.itemsize:
                raise _unreadable(path, f"tensor {name!r} claims {shape} of {dtype} but has {end - start} bytes")
            file.seek(8 + header_size + start)
            arrays[name] = _fill(path, name, file, dtype, math.prod(shape)).reshape(shape)
    return arrays
