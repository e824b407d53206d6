"""Blobs: immutable bytes named by their sha256, in a local folder or any fsspec store."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import fsspec

CHUNK_BYTES = 1 << 20


class BlobMissing(Exception):
    """The database names bytes the store does not hold."""


@dataclass(frozen=True)
class Blob:
    """Bytes in the store."""

    sha256: str
    size_bytes: int


class Blobs:
    """Content-addressed files under one URL. Writing the same bytes twice is harmless."""

    def __init__(self, url: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")
        self._local = "file" in _protocols(self._fs)
        if self._local:
            os.makedirs(self._root, exist_ok=True)

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"

    def adopt(self, path: Path, *, sha256: str | None = None) -> Blob:
        """Take a local file over into the store; `path` is gone afterwards. Hashes it unless told the hash."""
        size_bytes = path.stat().st_size
        sha256 = sha256 or hash_file(path)
        target = self._path(sha256)
        if self._local:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            try:
                os.replace(path, target)
            except OSError:  # another disk: copy beside the target, then rename
                beside = f"{target}.{os.getpid()}.part"
                shutil.copyfile(path, beside)
                os.replace(beside, target)
                path.unlink()
        else:
            if not self.exists(sha256):
                self._fs.put_file(str(path), target)
            path.unlink()
        return Blob(sha256, size_bytes)

    def exists(self, sha256: str) -> bool:
        return bool(self._fs.exists(self._path(sha256)))

    def open(self, sha256: str) -> IO[bytes]:
        """The bytes, seekable. Raises `BlobMissing`."""
        try:
            return cast("IO[bytes]", self._fs.open(self._path(sha256), "rb"))
        except FileNotFoundError:
            raise BlobMissing(f"blob {sha256} is not in the store") from None

    def copy_to(self, sha256: str, path: Path) -> None:
        """A private copy at `path`. Raises `BlobMissing`."""
        with self.open(sha256) as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target, CHUNK_BYTES)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
