"""Uploads that go wrong: nothing is half-written, nothing is left behind, and the answer says what happened."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.contracts.test_rest_api import problem
from tests.service.stack import HOST, ONNX_BYTES, SentMessages, quick_settings, serving

BOUNDARY = "b"
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="m.onnx"\r\n\r\n\x08'
TAIL = b"\r\n--b--\r\n"


@pytest.fixture
def quick(sqlite_template: Path, tmp_path: Path) -> Settings:
    """Settings on SQLite that lose patience at once and accept four mebibytes."""
    path = tmp_path / "bitwright.sqlite3"
    path.write_bytes(sqlite_template.read_bytes())
    return quick_settings(
        tmp_path / "data", f"sqlite:///{path}", upload_idle_s=0.3, upload_limit_bytes=4 << 20, archive_ratio_limit=50.0
    )


@pytest.fixture
def api(quick: Settings) -> Iterator[httpx.Client]:
    with serving(quick, SentMessages()) as client:
        yield client


@contextlib.contextmanager
def half_upload(api: httpx.Client, declared: int, sent: bytes) -> Iterator[socket.socket]:
    """A connection on which so many bytes are announced and these are sent."""
    head = (
        f"POST /v1/models HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {declared}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    with socket.create_connection((HOST, api.base_url.port or 0), timeout=10) as connection:
        connection.sendall(head.encode() + sent)
        yield connection


def answer_on(connection: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def eventually(met: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not met():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def files_of(settings: Settings) -> list[Path]:
    return [path for path in settings.data_folder.rglob("*") if path.is_file() and "broker" not in path.parts]


def test_a_client_that_goes_away_leaves_nothing(api: httpx.Client, quick: Settings) -> None:
    with half_upload(api, 3_000_000, HEAD + b"x" * 2_000_000):
        eventually(lambda: any(quick.upload_folder.glob("*")), "the upload began")
    eventually(lambda: not files_of(quick), "what had arrived is deleted")
    assert api.get("/v1/models").json()["items"] == []


def test_a_client_that_falls_silent_is_told(api: httpx.Client, quick: Settings) -> None:
    with half_upload(api, 500_000, HEAD) as connection:
        status, body = answer_on(connection)
    assert (status, b"upload_stalled" in body) == (408, True)
    assert files_of(quick) == []


@pytest.mark.parametrize("declared", [len(HEAD) - 20, len(HEAD) + 5])
def test_a_content_length_that_is_too_short(api: httpx.Client, quick: Settings, declared: int) -> None:
    with half_upload(api, declared, HEAD + b"x" * 100 + TAIL) as connection:
        status, body = answer_on(connection)
    assert (status, b"malformed_multipart" in body) == (400, True)
    assert files_of(quick) == []


def test_a_content_length_that_is_too_long(api: httpx.Client, quick: Settings) -> None:
    with half_upload(api, 1000, HEAD + TAIL) as connection:
        connection.shutdown(socket.SHUT_WR)
        eventually(lambda: not any(quick.upload_folder.glob("*")), "what had arrived is deleted")
    assert api.get("/v1/models").json()["items"] == []


def test_an_announced_oversize_is_refused_before_a_byte(api: httpx.Client, quick: Settings) -> None:
    with half_upload(api, 1 << 40, b"") as connection:
        status, body = answer_on(connection)
    assert (status, b"too_large" in body) == (413, True)
    assert not quick.upload_folder.exists()


def test_only_uploads_may_be_large(api: httpx.Client) -> None:
    form = {"file": ("m.onnx", b"\x08" * (2 << 20))}
    assert api.post("/v1/models", files=form).status_code == 201
    for path in ("/v1/studies", "/v1/hardware-profiles", "/login"):
        problem(api.post(path, files=form), 413, "too_large")


def test_the_same_bytes_at_once_are_one_model(http: httpx.Client) -> None:
    start = threading.Barrier(6)

    def send(_: int) -> httpx.Response:
        start.wait()
        return httpx.post(f"{http.base_url}/v1/models", files={"file": ("m.onnx", ONNX_BYTES)}, timeout=30)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(send, range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_a_full_disk_stores_nothing(quick: Settings, tmp_path: Path) -> None:
    """The server may write files of at most 300 kB: to it, a larger upload meets a full disk."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, **quick.as_environment(), "BITWRIGHT_PORT": str(port)}
    limit = 300_000
    server = subprocess.Popen(
        [sys.executable, "-m", "workers.server_cli", "api"],
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=30) as client:

            def answers() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/healthz").status_code == 200
                return False

            eventually(answers, "the server is up")
            form = {"file": ("m.onnx", b"\x08" * 600_000)}
            problem(client.post("/v1/models", files=form), 507, "storage_full")
            assert files_of(quick) == []
            assert client.get("/v1/models").json()["items"] == []
            small = {"file": ("m.onnx", ONNX_BYTES)}
            assert client.post("/v1/models", files=small).status_code == 201, "it goes on serving"
    finally:
        server.terminate()
        server.wait(10)


def test_a_database_that_is_away(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    away = quick_settings(tmp_path / "data", f"postgresql+psycopg://bitwright@{HOST}:{port}/bitwright")
    with serving(away, SentMessages()) as client:
        answer = client.get("/v1/models")
        assert problem(answer, 503, "database_unavailable")["retryable"]
        assert answer.headers["retry-after"] == "2"
        form = {"file": ("m.onnx", ONNX_BYTES)}
        problem(client.post("/v1/models", files=form), 503, "database_unavailable")
        assert not list(away.upload_folder.glob("*"))
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200


def archive(*entries: tuple[str | zipfile.ZipInfo, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packing) as opened:
        for name, content in entries:
            opened.writestr(name, content)
    return made.getvalue()


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.external_attr = mode << 16
    return made


ONNX = ("net.onnx", ONNX_BYTES)


def test_an_archive_is_the_files_in_it(api: httpx.Client, quick: Settings) -> None:
    sent = api.post("/v1/models", files={"archive": ("net.zip", archive(ONNX, ("net.onnx.data", b"weights")))})
    assert sent.status_code == 201, sent.text
    assert sent.json()["name"] == "net.onnx"
    assert [file["name"] for file in sent.json()["files"]] == ["model.onnx", "net.onnx.data"]
    files = [("file", ("net.onnx", ONNX_BYTES)), ("external_data", ("net.onnx.data", b"weights"))]
    again = api.post("/v1/models", files=files)
    assert (again.status_code, again.json()["id"]) == (200, sent.json()["id"]), "however it was sent"
    assert not list(quick.upload_folder.glob("*"))


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (archive(ONNX, ("../../x.data", b"x")), 422, "archive_content"),
        (archive(ONNX, ("/etc/x.data", b"x")), 422, "archive_content"),
        (archive(ONNX, ("folder/x.data", b"x")), 422, "archive_content"),
        (archive(ONNX, ("folder/", b"")), 422, "archive_content"),
        (archive(ONNX, (".hidden", b"x")), 422, "archive_content"),
        (archive(ONNX, (entry("x.data", stat.S_IFLNK | 0o777), b"/etc/passwd")), 422, "archive_content"),
        (archive(ONNX, ("other.onnx", b"\x08")), 422, "archive_content"),
        (archive(("x.data", b"x")), 422, "archive_content"),
        (archive(ONNX, packing=zipfile.ZIP_LZMA), 422, "archive_content"),
        (archive(*(ONNX if i == 0 else (f"{i}.data", b"x") for i in range(65))), 422, "archive_content"),
        (archive(ONNX, ("x.npz", b"x")), 422, "external_data_name"),
        (archive(("net.onnx", b"\x80\x04\x95pickle")), 415, "model_format_unsupported"),
        (archive(("net.onnx", b"")), 422, "empty_upload"),
        (archive(ONNX, ("zeros.data", bytes(8 << 20))), 413, "archive_too_large"),
        (archive(ONNX, ("zeros.data", bytes(300_000))), 413, "archive_too_large"),
        (archive(ONNX)[:-30], 422, "archive_unreadable"),
        (archive(ONNX) + b"more", 422, "archive_unreadable"),
        (b"no zip at all", 422, "archive_unreadable"),
        (b"", 422, "archive_unreadable"),
    ],
    ids=map(str, range(19)),  # an archive holds the time it was made, which no name of a test may
)
def test_archives_that_are_refused(api: httpx.Client, quick: Settings, content: bytes, status: int, code: str) -> None:
    problem(api.post("/v1/models", files={"archive": ("net.zip", content)}), status, code)
    assert files_of(quick) == []


def test_an_archive_that_lies(api: httpx.Client, quick: Settings) -> None:
    made = archive(ONNX, ("x.data", b"x" * 1000))
    directory = made.rindex(b"PK\x01\x02")
    lies: list[tuple[int, bytes]] = [
        (24, (10).to_bytes(4, "little")),  # says it unpacks to 10 bytes
        (16, b"\0\0\0\0"),  # another checksum
        (42, (1 << 30).to_bytes(4, "little")),  # lies beyond the end
        (8, b"\x01\0"),  # says it is encrypted
    ]
    for offset, value in lies:
        forged = bytearray(made)
        forged[directory + offset : directory + offset + len(value)] = value
        answer = api.post("/v1/models", files={"archive": ("net.zip", bytes(forged))})
        assert answer.status_code == 422, (offset, answer.text)
        assert answer.json()["code"] in ("archive_unreadable", "archive_content")
    assert files_of(quick) == []


def test_text_no_column_can_hold(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    body: dict[str, Any] = {"model": "m", "targets": [{"hardware": "tiny-cpu", "budgets": {"bops": 1}}]}
    import json

    for text in ('"\\u0000"', '"\\ud800"', '"a\\udc00b"'):
        sent = json.dumps({**body, "name": "NAME"}).replace('"NAME"', text)
        problem(http.post("/v1/studies", content=sent, headers=headers), 422, "invalid_request")
    fine = json.dumps({**body, "name": "\\u0000 😀 written out"})
    problem(http.post("/v1/studies", content=fine, headers=headers), 404, "model_unknown")
    problem(http.get("/v1/studies?model=a%00b"), 422, "invalid_request")
    problem(http.get("/v1/models/a%00b"), 422, "invalid_request")
    problem(http.post("/v1/studies", content=b"\xff{}", headers=headers), 400, "bad_request")
    problem(http.post("/v1/studies", content=b"[" * 100_000, headers=headers), 400, "bad_request")
    problem(
        http.post("/v1/studies", content=b"{}", headers={"Content-Type": "text/plain"}), 415, "media_type_unsupported"
    )
