"""Blobs: named by content, in a folder, in an S3 store, and in a store that is neither."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from service import blobs as blobs_module
from service.blobs import BlobDamaged, BlobMissing, Blobs, BlobStoreAway

BUCKET = "bitwright"
ACCESS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of a private S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=address, aws_access_key_id="k", aws_secret_access_key="s")
    client.create_bucket(Bucket=BUCKET)
    yield address
    server.stop()


@pytest.fixture
def s3_access(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The variables by which an operator tells where S3 is."""
    for name, value in {**ACCESS, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def s3_url(s3_access: str) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["folder", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3_url"))
    return str(tmp_path / "blobs") if request.param == "folder" else f"memory://{tmp_path.name}"


@pytest.fixture
def blobs(url: str) -> Blobs:
    return Blobs(url)


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
        file.seek(-7, os.SEEK_END)
        assert file.read() == b"weights"
    copy = tmp_path / "copy"
    blobs.copy_to(blob.sha256, copy)
    assert copy.read_bytes() == content


def test_the_same_bytes_twice_are_one_blob(blobs: Blobs, tmp_path: Path) -> None:
    assert blobs.adopt(a_file(tmp_path, b"x")) == blobs.adopt(a_file(tmp_path, b"x"))
    assert [file.size_bytes for file in blobs.files()] == [1]


def test_missing_bytes_are_named(blobs: Blobs) -> None:
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


def test_another_process_sees_what_was_written(url: str, tmp_path: Path) -> None:
    reader = Blobs(url)
    sha256 = hashlib.sha256(b"late").hexdigest()
    assert not reader.exists(sha256)
    Blobs(url).adopt(a_file(tmp_path, b"late"))
    assert reader.exists(sha256)


def test_bytes_that_are_not_what_their_name_says_are_not_handed_out(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = blobs.adopt(a_file(tmp_path, b"bit rot"), sha256="a" * 64)
    copy = tmp_path / "copy"
    with pytest.raises(BlobDamaged, match="aaaa"):
        blobs.copy_to(wrong.sha256, copy)
    assert not copy.exists()


def test_old_files_are_removed_and_renewed_ones_kept(blobs: Blobs, tmp_path: Path) -> None:
    blob = blobs.adopt(a_file(tmp_path, b"gone soon"))
    (file,) = blobs.files()
    assert (file.sha256, file.size_bytes) == (blob.sha256, 9)
    assert abs(file.modified_at - time.time()) < 60
    assert not blobs.remove(file, unless_younger_than=file.modified_at - 1), "renewed since it was listed"
    assert blobs.exists(blob.sha256)
    assert blobs.remove(file, unless_younger_than=time.time() + 1)
    assert not blobs.exists(blob.sha256)
    assert not blobs.remove(file, unless_younger_than=time.time() + 1)


def test_adopting_known_bytes_makes_them_young(blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "REFRESH_S", 0.0)
    blobs.adopt(a_file(tmp_path, b"again"))
    (before,) = blobs.files()
    time.sleep(1.1)  # S3 counts whole seconds
    path = a_file(tmp_path, b"again")
    os.utime(path, (0, 0))
    blobs.adopt(path)
    (after,) = blobs.files()
    assert after.modified_at > before.modified_at


def test_large_bytes_go_to_s3_in_parts(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = Blobs(s3_url)
    monkeypatch.setattr(type(blobs._fs), "default_block_size", 5 << 20)
    content = os.urandom(1 << 20) * 12
    put = blobs._fs.put_file
    monkeypatch.setattr(blobs._fs, "put_file", lambda path, target: put(path, target, chunksize=5 << 20))
    blob = blobs.adopt(a_file(tmp_path, content))
    assert "-" in blobs._fs.info(blobs._path(blob.sha256))["ETag"], "a multipart upload"
    copy = tmp_path / "copy"
    blobs.copy_to(blob.sha256, copy)
    assert copy.read_bytes() == content


def test_threads_share_one_s3_store(s3_url: str, tmp_path: Path) -> None:
    blobs = Blobs(s3_url)
    errors: list[Exception] = []

    def go(number: int) -> None:
        try:
            path = tmp_path / str(number)
            path.write_bytes(b"%d" % (number % 3))
            blob = blobs.adopt(path)
            blobs.copy_to(blob.sha256, path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=go, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(list(blobs.files())) == 3


def test_a_store_that_is_away_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(blobs_module.S3_CLIENT, "retries", {"max_attempts": 0})
    monkeypatch.setitem(blobs_module.S3_CLIENT, "connect_timeout", 1)
    for name, value in {**ACCESS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    blobs = Blobs(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    with pytest.raises(BlobStoreAway):
        blobs.exists("0" * 64)
    path = a_file(tmp_path, b"kept")
    with pytest.raises(BlobStoreAway):
        blobs.adopt(path)
    assert path.read_bytes() == b"kept"


def test_a_bucket_that_refuses_us_is_an_error_not_a_missing_blob(s3_access: str) -> None:
    blobs = Blobs("s3://no-such-bucket/x")
    with pytest.raises((BlobStoreAway, BlobMissing)):
        blobs.open("0" * 64)


def test_a_full_disk_leaves_no_half_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = Blobs(str(tmp_path / "blobs"))
    path = a_file(tmp_path, b"no room")

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(blobs_module.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        blobs.adopt(path)
    assert list(blobs.files()) == []
    assert path.exists()


def test_what_an_interrupted_write_left_is_seen_as_no_blob(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path / "blobs"))
    left = tmp_path / "blobs" / "ab" / ("ab" * 32 + ".12.part")
    left.parent.mkdir()
    left.write_bytes(b"half")
    (file,) = blobs.files()
    assert file.sha256 is None
    assert blobs.remove(file, unless_younger_than=time.time() + 1)
    assert not left.exists()
