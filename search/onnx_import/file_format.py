"""File format: recognises by content what was submitted instead of an ONNX model."""

from __future__ import annotations

import zipfile
from pathlib import Path

_ARCHIVE_NAMES = 200

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstandard archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x7fELF", "an executable"),
    (0, b"MZ", "an executable"),
    (0, b"GGUF", "a GGUF model"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x89PNG", "an image"),
    (0, b"ORTM", "an ONNX Runtime flatbuffer"),
    (4, b"ORTM", "an ONNX Runtime flatbuffer"),
)


def foreign_format(path: Path) -> str | None:
    """What the file is when it is plainly not ONNX ("a TorchScript archive"), None when it may be."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "an empty file"
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return _zip_kind(path)
    if head[0] == 0x80 and len(head) > 1 and head[1] in range(2, 6):
        return "a Python pickle (.pth, .pt, .joblib)"
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    if len(head) > 9 and int.from_bytes(head[:8], "little") < 1 << 27 and head[8:10] in (b'{"', b"{}"):
        return "a safetensors file (weights without a graph)"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML or XML page"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file it points to"
    if text.startswith((b"{", b"[")):
        return "a JSON document"
    return None


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()[:_ARCHIVE_NAMES]]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged zip archive"
    if any(name.endswith(("archive_format", "models/model.json")) for name in names):
        return "a PyTorch .pt2 archive, which runs code when loaded"
    if any("/code/" in name for name in names):
        return "a TorchScript archive, which runs code when loaded"
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch pickle archive, which runs code when loaded"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy .npz archive"
    return "a zip archive"
