"""Blobs: named by content, in a folder and in a store that is no folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from service.blobs import BlobMissing, Blobs


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return Blobs(str(tmp_path / "blobs") if request.param == "folder" else f"memory://{tmp_path.name}")


def a_file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(content)
    return path


def test_bytes_come_back_under_their_hash(blobs: Blobs, tmp_path: Path) -> None:
    content = b"weights" * 1000
    path = a_file(tmp_path, content)
    blob = blobs.adopt(path)
    assert (blob.sha256, blob.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert not path.exists()
    assert blobs.exists(blob.sha256)
    with blobs.open(blob.sha256) as file:
        file.seek(7)
        assert file.read(7) == b"weights"
    copy = tmp_path / "copy"
    blobs.copy_to(blob.sha256, copy)
    assert copy.read_bytes() == content


def test_the_same_bytes_twice_are_one_blob(blobs: Blobs, tmp_path: Path) -> None:
    assert blobs.adopt(a_file(tmp_path, b"x")) == blobs.adopt(a_file(tmp_path, b"x"))


def test_missing_bytes_are_named(blobs: Blobs, tmp_path: Path) -> None:
    assert not blobs.exists("0" * 64)
    with pytest.raises(BlobMissing, match="0000"):
        blobs.open("0" * 64)


def test_a_copy_changed_does_not_change_the_blob(blobs: Blobs, tmp_path: Path) -> None:
    blob = blobs.adopt(a_file(tmp_path, b"original"))
    copy = tmp_path / "copy"
    blobs.copy_to(blob.sha256, copy)
    copy.write_bytes(b"changed!")
    with blobs.open(blob.sha256) as file:
        assert file.read() == b"original"
