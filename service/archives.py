"""Archives: a zip with one ONNX file and its external data, unpacked within limits and without trusting its numbers."""

from __future__ import annotations

import hashlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from service.blobs import CHUNK_BYTES
from service.errors import Problem
from service.uploads import HEAD_BYTES, UploadedFile, safe_name

MAX_ENTRIES = 64
MAX_DIRECTORY_BYTES = 1 << 16
PACKINGS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
HINT = "zip -j model.zip model.onnx model.onnx.data"
_END = struct.Struct("<4s4H2LH")
_END_LOCATOR_64 = b"PK\x06\x07"
_LOCATOR_BYTES = 20


def unpack(
    archive: UploadedFile, folder: Path, *, limit_bytes: int, ratio_limit: float, keep: Callable[[UploadedFile], None]
) -> tuple[UploadedFile, list[UploadedFile]]:
    """The ONNX file of an archive and the files beside it, each hashed and handed to `keep` before it is written.

    Raises `Problem`: `archive_unreadable` for what is no plain zip, `archive_content` for folders, links, encrypted or
    doubled entries and for anything but one `.onnx` file, `archive_too_large` for what unpacks to more than allowed.
    """
    allowed = min(limit_bytes, int(archive.size_bytes * ratio_limit))
    try:
        _check_end(archive.path)
        with zipfile.ZipFile(archive.path) as opened:
            entries = opened.infolist()
            _check_entries(entries)
            if sum(entry.file_size for entry in entries) > allowed:
                raise _too_large(allowed)
            files = []
            for entry in entries:
                file = UploadedFile("archive", entry.filename, folder / uuid4().hex)
                keep(file)
                files.append(file)
                allowed -= _extract(opened, entry, file, allowed)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, ValueError) as error:
        raise _unreadable(str(error)) from error
    (main,) = (file for file in files if file.name.endswith(".onnx"))
    return main, [file for file in files if file is not main]


def _check_end(path: Path) -> None:
    """Bound the directory before `zipfile` reads it whole: a small one, at the very end, without 64-bit sizes."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END.size - _LOCATOR_BYTES))
        tail = file.read()
    magic, _, _, _, entries, directory_bytes, _, _ = _END.unpack(tail[-_END.size :])
    if magic != b"PK\x05\x06" or tail.startswith(_END_LOCATOR_64):
        raise _unreadable("it has no plain zip directory at its end")
    if entries > MAX_ENTRIES or directory_bytes > MAX_DIRECTORY_BYTES:
        raise _content(f"it holds {entries} entries, at most {MAX_ENTRIES} are accepted")


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    if len(entries) > MAX_ENTRIES or len(set(names)) != len(names):
        raise _content(f"it holds {len(entries)} entries, or two of one name")
    for entry in entries:
        mode = entry.external_attr >> 16
        if entry.filename != safe_name(entry.filename) or entry.is_dir():
            raise _content(f"the entry {entry.filename[:100]!r} is not a plain file name")
        if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            raise _content(f"the entry {entry.filename[:100]!r} is a link or a device")
        if entry.flag_bits & 0x1 or entry.compress_type not in PACKINGS:
            raise _content(f"the entry {entry.filename[:100]!r} is encrypted or packed in an unusual way")
    if sum(name.endswith(".onnx") for name in names) != 1:
        raise _content("it must hold exactly one .onnx file")


def _extract(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, file: UploadedFile, allowed: int) -> int:
    digest = hashlib.sha256()
    with opened.open(entry) as source, open(file.path, "xb") as target:
        while piece := source.read(CHUNK_BYTES):
            file.size_bytes += len(piece)
            if file.size_bytes > allowed:
                raise _too_large(allowed)
            file.head = (file.head + piece)[:HEAD_BYTES]
            digest.update(piece)
            target.write(piece)
    file.sha256 = digest.hexdigest()
    return file.size_bytes


def _unreadable(why: str) -> Problem:
    return Problem(422, "archive_unreadable", f"the archive cannot be read: {why}", hint=f"make it with: {HINT}")


def _content(why: str) -> Problem:
    return Problem(422, "archive_content", f"the archive is not one of a model: {why}", hint=f"make it with: {HINT}")


def _too_large(allowed: int) -> Problem:
    return Problem(413, "archive_too_large", f"the archive unpacks to more than {allowed} bytes", hint="send the files")
