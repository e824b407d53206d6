"""External data: reads initializers stored beside the model, never outside its folder."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from search.errors import BadSubmission
from search.onnx_import.limits import EXPORT_RECIPE, Limits

_FOUR_BIT = frozenset({TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT4E2M1})
_TWO_BIT = frozenset(getattr(TensorProto, name) for name in ("UINT2", "INT2") if hasattr(TensorProto, name))


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the graph: initializers and those inside node attributes."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def element_count(tensor: onnx.TensorProto) -> int:
    """The product of the dims as a Python int; raises `BadSubmission` for negative ones."""
    if any(size < 0 for size in tensor.dims):
        raise BadSubmission(
            f"initializer {tensor.name[:80]!r} has dims {list(tensor.dims)[:8]}",
            hint=EXPORT_RECIPE,
            code="model_rejected",
        )
    return prod(int(size) for size in tensor.dims)


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes the tensor's raw data must have."""
    count = element_count(tensor)
    if tensor.data_type in _FOUR_BIT:
        return -(-count // 2)
    if tensor.data_type in _TWO_BIT:
        return -(-count // 4)
    try:
        return count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError, ValueError) as error:
        raise BadSubmission(
            f"initializer {tensor.name[:80]!r} has unknown element type {tensor.data_type}",
            hint=EXPORT_RECIPE,
            code="model_rejected",
        ) from error


def load_external_data(model: onnx.ModelProto, folder: Path, limits: Limits) -> str:
    """Copy external data into the model's tensors, in place; a hash of the files read, empty when there are none.

    Raises `BadSubmission`: `external_data_escapes` for a location that is absolute, climbs out or is a link,
    `external_data_missing` for a file that is not there or ends too early, `model_too_large` beyond the limits.
    """
    digests: dict[str, str] = {}
    budget = limits.upload_bytes
    for tensor in tensors_of(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        keys = {entry.key: entry.value for entry in tensor.external_data}
        location = keys.get("location", "")
        path = _inside(folder, location, tensor.name)
        offset, wanted = _number(keys, "offset", tensor), stored_bytes(tensor)
        length = _number(keys, "length", tensor, default=wanted)
        if length != wanted:
            raise BadSubmission(
                f"initializer {tensor.name[:80]!r} needs {wanted} bytes, its external data says {length}",
                hint=EXPORT_RECIPE,
                code="model_rejected",
            )
        budget -= wanted
        if budget < 0:
            raise BadSubmission(
                f"external data exceeds {limits.upload_bytes} bytes",
                hint="submit a smaller model",
                code="model_too_large",
            )
        tensor.raw_data = _read(path, location, offset, wanted, tensor.name)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
        digests.setdefault(location, _file_digest(path))
    return (
        hashlib.sha256("".join(f"{k}:{v};" for k, v in sorted(digests.items())).encode()).hexdigest() if digests else ""
    )


def external_files(path: Path) -> list[str]:
    """Locations of the external data that a file asks for, relative to its folder; none when it is not a model.

    Raises `BadSubmission` with `external_data_escapes` for a location that is absolute or climbs out. Links are the
    caller's own and may be followed.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        return []
    locations = {
        entry.value: tensor.name
        for tensor in tensors_of(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location, tensor in locations.items():
        _parts(location, tensor)
    return sorted(locations)


def _parts(location: str, tensor: str) -> tuple[str, ...]:
    posix = PurePosixPath(location)
    climbs = ".." in posix.parts or ".." in PureWindowsPath(location).parts
    absolute = posix.is_absolute() or PureWindowsPath(location).drive or location.startswith("\\")
    if not location or climbs or absolute or "\0" in location:
        raise BadSubmission(
            f"initializer {tensor[:80]!r} reads external data at {location[:200]!r}, outside the model's folder",
            hint="external data must be a file beside the model, named without a folder",
            code="external_data_escapes",
        )
    return posix.parts


def _inside(folder: Path, location: str, tensor: str) -> Path:
    path = folder
    for part in _parts(location, tensor):
        path = path / part
        if path.is_symlink():
            raise BadSubmission(
                f"initializer {tensor[:80]!r} reads external data through the link {location[:200]!r}",
                hint="submit the file itself, not a link to it",
                code="external_data_escapes",
            )
    return path


def _number(keys: dict[str, str], key: str, tensor: onnx.TensorProto, default: int = 0) -> int:
    text = keys.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadSubmission(
            f"initializer {tensor.name[:80]!r} has external data {key} {text[:40]!r}",
            hint=EXPORT_RECIPE,
            code="model_rejected",
        )
    return int(text)


def _read(path: Path, location: str, offset: int, wanted: int, tensor: str) -> bytes:
    missing = BadSubmission(
        f"initializer {tensor[:80]!r} is stored in {location[:200]!r}, which was not submitted",
        hint="submit the .data file too, under that name, or export with external_data=False",
        code="external_data_missing",
    )
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise missing from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise missing
        if offset + wanted > status.st_size:
            raise BadSubmission(
                f"{location[:200]!r} has {status.st_size} bytes; initializer {tensor[:80]!r} ends at {offset + wanted}",
                hint="the file is truncated or belongs to another export: submit both files of one export",
                code="external_data_missing",
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            file.seek(offset)
            return file.read(wanted)
    finally:
        os.close(descriptor)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
