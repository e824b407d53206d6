"""Blobs: immutable bytes named by their sha256, in a local folder or any fsspec store such as S3.

A name is a promise about the bytes: what is stored was hashed here, and a private copy is hashed again while it is
made. Writing the same bytes twice is harmless; nobody ever sees half of a blob.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import fsspec

CHUNK_BYTES = 1 << 20
READ_AHEAD_BYTES = 4 << 20
# A blob found in the store is written again when it is older: a collector may just be about to remove it.
REFRESH_S = 3600.0
S3_CLIENT = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3, "mode": "standard"}}
_NAME = re.compile(r"[0-9a-f]{64}")


class BlobMissing(Exception):
    """The database names bytes the store does not hold."""


class BlobDamaged(BlobMissing):
    """The store holds other bytes under that name."""


class BlobStoreAway(OSError):
    """The store does not answer, or refuses us; try again later."""


@dataclass(frozen=True)
class Blob:
    """Bytes in the store."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class StoredFile:
    """Something that lies in the store: a blob, or (`sha256` None) what an interrupted write left behind."""

    path: str
    sha256: str | None
    size_bytes: int
    modified_at: float


class Blobs:
    """Content-addressed files under one URL: `<root>/<first two hex digits>/<sha256>`."""

    def __init__(self, url: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(url, **_options(url))
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
        if self._local:
            self._move_in(path, self._path(sha256))
        else:
            with self._reaching(sha256):
                self._send(path, self._path(sha256), size_bytes)
            path.unlink()
        return Blob(sha256, size_bytes)

    def _move_in(self, path: Path, target: str) -> None:
        folder = os.path.dirname(target)
        os.makedirs(folder, exist_ok=True)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        beside = f"{target}.{os.getpid()}.{time.monotonic_ns()}.part"
        try:
            try:
                os.utime(path)  # a rename keeps the old time, and a collector goes by age
                os.replace(path, target)
            except OSError:  # another disk: copy beside the target, then rename
                shutil.copyfile(path, beside)
                _sync(beside)
                os.replace(beside, target)
                path.unlink()
        finally:
            with suppress(FileNotFoundError):
                os.unlink(beside)
        _sync(folder)

    def _send(self, path: Path, target: str, size_bytes: int) -> None:
        found = self._stored(target)
        if found is not None and found.size_bytes == size_bytes and time.time() - found.modified_at < REFRESH_S:
            return
        self._fs.put_file(str(path), target)  # in parts when large; parts show as a whole or not at all
        stored = self._stored(target)
        if stored is None or stored.size_bytes != size_bytes:
            raise BlobStoreAway(f"the store kept {stored and stored.size_bytes} of {size_bytes} bytes of {target}")

    def exists(self, sha256: str) -> bool:
        with self._reaching(sha256):
            return self._stored(self._path(sha256)) is not None

    def open(self, sha256: str) -> IO[bytes]:
        """The bytes, seekable and read as needed. Raises `BlobMissing`, `BlobStoreAway`."""
        with self._reaching(sha256):
            if self._local:
                return open(self._path(sha256), "rb")
            return cast("IO[bytes]", self._fs.open(self._path(sha256), "rb", block_size=READ_AHEAD_BYTES))

    def copy_to(self, sha256: str, path: Path) -> None:
        """A private copy at `path`, hashed while it is made. Raises `BlobMissing`, `BlobDamaged`, `BlobStoreAway`."""
        digest = hashlib.sha256()
        with self.open(sha256) as source, open(path, "wb") as target:
            while piece := self._read(sha256, source):
                digest.update(piece)
                target.write(piece)
        if digest.hexdigest() != sha256:
            path.unlink()
            raise BlobDamaged(f"blob {sha256} holds other bytes, those of {digest.hexdigest()}")

    def _read(self, sha256: str, source: IO[bytes]) -> bytes:
        with self._reaching(sha256):
            return source.read(CHUNK_BYTES)

    def files(self) -> Iterator[StoredFile]:
        """Everything in the store, in no particular order."""
        with self._reaching("listing"):
            found = self._fs.find(self._root, detail=True)
        for path, info in found.items():
            yield _stored_file(path, info)

    def remove(self, file: StoredFile, *, unless_younger_than: float) -> bool:
        """Delete one file of the store; False when it is gone or was written after `unless_younger_than`."""
        with self._reaching(file.path):
            now = self._stored(file.path)
            if now is None or now.modified_at > unless_younger_than:
                return False
            self._fs.rm_file(file.path)
            return True

    def _stored(self, path: str) -> StoredFile | None:
        try:
            return _stored_file(path, self._fs.info(path))
        except FileNotFoundError:
            return None

    @contextmanager
    def _reaching(self, sha256: str) -> Iterator[None]:
        """Turn whatever a remote store raises into our words; a local folder's errors are clear as they are."""
        try:
            yield
        except FileNotFoundError:
            raise BlobMissing(f"blob {sha256} is not in the store") from None
        except BlobStoreAway:
            raise
        except Exception as error:
            if self._local:
                raise
            raise BlobStoreAway(f"the blob store failed: {type(error).__name__}: {error}"[:500]) from error


def _options(url: str) -> dict[str, Any]:
    if not url.startswith("s3:"):
        return {}
    # A listing remembered by this process would hide what others wrote since.
    return {"use_listings_cache": False, "config_kwargs": S3_CLIENT}


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _stored_file(path: str, info: dict[str, Any]) -> StoredFile:
    modified = next((info[name] for name in ("mtime", "LastModified", "created") if name in info), 0.0)
    modified_at = modified if isinstance(modified, int | float) else modified.timestamp()
    name = path.rpartition("/")[2]
    return StoredFile(path, name if _NAME.fullmatch(name) else None, int(info["size"]), float(modified_at))


def _sync(path: str) -> None:
    """Have a file, or a folder's entries, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
