"""What a client does when the network or the server is in trouble: tries again safely, resumes, and ends in time."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

import bitwright
from tests.client.faulty_server import Answer, faulty

RUNNING = {"id": "study_1", "state": "polishing", "is_terminal": False, "new_field": 1}


def as_json(status: int, value: Any, **headers: str) -> Answer:
    return status, {"Content-Type": "application/json", **headers}, json.dumps(value).encode()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", taken.append)
    return taken


def test_a_study_is_sent_again_under_one_key(pauses: list[float]) -> None:
    def answer(number: int, *_: object) -> Answer:
        return as_json(503, {"code": "busy"}) if number < 2 else as_json(201, RUNNING)

    with faulty(answer) as server, bitwright.Client(server.url) as client:
        study = client.submit("model_1", hardware="x", budgets={"bops": 1.0})
    keys = {headers["idempotency-key"] for _, _, headers, _ in server.requests}
    assert (len(server.requests), len(keys)) == (3, 1)
    assert len(pauses) == 2
    assert 0.25 <= pauses[0] <= 0.5
    assert 0.5 <= pauses[1] <= 1.0
    assert not study.is_terminal, "a state this client does not know is not an end"
    assert study.raw["new_field"] == 1


def test_pauses_grow_and_are_jittered(pauses: list[float]) -> None:
    with faulty(lambda *_: as_json(502, {})) as server:
        for _ in range(6):
            with bitwright.Client(server.url, retries=6) as client, pytest.raises(bitwright.ApiError):
                client.study("study_1")
    by_try = [pauses[number::6] for number in range(6)]
    assert all(0.25 * 2**number <= min(tries) for number, tries in enumerate(by_try[:5]))
    assert all(max(tries) <= 0.5 * 2**number for number, tries in enumerate(by_try))
    assert len(set(by_try[5])) > 3, "clients must not come back as one"
    assert max(by_try[5]) <= 15.0


def test_a_pause_the_server_asks_for_is_kept(pauses: list[float]) -> None:
    def answer(number: int, *_: object) -> Answer:
        return as_json(429, {}, **{"Retry-After": "7"}) if number == 0 else as_json(200, RUNNING)

    with faulty(answer) as server, bitwright.Client(server.url) as client:
        assert client.study("study_1").id == "study_1"
    assert pauses == [7.0]


def test_what_will_not_pass_is_not_tried_again(pauses: list[float]) -> None:
    for status, kind in ((401, bitwright.AccessDenied), (403, bitwright.AccessDenied), (500, bitwright.ApiError)):
        with faulty(lambda *_, status=status: as_json(status, {"code": "c", "detail": "d"})) as server:
            with bitwright.Client(server.url) as client, pytest.raises(kind) as refused:
                client.study("study_1")
            assert refused.value.status == status
            assert len(server.requests) == 1
    assert pauses == []


def test_the_key_comes_from_the_option_or_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITWRIGHT_API_KEY", "bw_variable")
    with faulty(lambda *_: as_json(200, RUNNING)) as server:
        with bitwright.Client(server.url) as client:
            client.study("study_1")
        with bitwright.Client(server.url, key="bw_option") as client:
            client.study("study_1")
    assert [headers["authorization"] for _, _, headers, _ in server.requests] == [
        "Bearer bw_variable",
        "Bearer bw_option",
    ]


def test_an_upload_is_sent_whole_at_every_try(pauses: list[float], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"onnx" * 1000)

    def answer(number: int, *_: object) -> Answer:
        return as_json(503, {}) if number == 0 else as_json(201, {"id": "model_1"})

    with faulty(answer) as server, bitwright.Client(server.url) as client:
        assert client.upload_model(path) == "model_1"
    bodies = [body for _, _, _, body in server.requests]
    assert all(b"onnx" * 1000 in body for body in bodies)
    assert len({headers["idempotency-key"] for _, _, headers, _ in server.requests}) == 1


def test_a_download_goes_on_where_it_broke_off(pauses: list[float], tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    sha256 = hashlib.sha256(content).hexdigest()
    artifact = {"id": "a", "name": "net.onnx", "target": 0, "sha256": sha256, "size_bytes": len(content), "href": "/a"}

    def answer(number: int, method: str, path: str, headers: dict[str, str]) -> Answer:
        if path.endswith("/artifacts"):
            return as_json(200, {"items": [artifact]})
        first = int(headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        rest = content[first:]
        told = {"Content-Length": str(len(rest)), **({"Content-Range": "bytes"} if first else {})}
        return (206 if first else 200), told, rest if number >= 3 else rest[:300_000]

    with faulty(answer) as server, bitwright.Client(server.url) as client:
        (path,) = client.download("study_1", tmp_path)
    assert path.read_bytes() == content
    assert [headers.get("range") for _, _, headers, _ in server.requests[1:]] == [
        None,
        "bytes=300000-",
        "bytes=600000-",
    ]
    assert server.requests[2][2]["if-range"] == f'"{sha256}"'
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("name", ["../net.onnx", "/etc/passwd", "..", ""])
def test_a_server_cannot_choose_where_a_file_lands(name: str, tmp_path: Path) -> None:
    artifact = {"id": "a", "name": name, "target": 0, "sha256": "0" * 64, "size_bytes": 1, "href": "/a"}
    with faulty(lambda *_: as_json(200, {"items": [artifact]})) as server, bitwright.Client(server.url) as client:
        with pytest.raises(bitwright.DamagedDownload, match="plain file name"):
            client.download("study_1", tmp_path / "out")
    assert not (tmp_path / "net.onnx").exists()


def test_a_server_that_does_not_hold_polls_is_not_asked_without_end() -> None:
    def answer(number: int, *_: object) -> Answer:
        tag = {"ETag": '"1"', "Retry-After": "1"}
        return as_json(200, RUNNING, **tag) if number == 0 else (304, tag, b"")

    begun = time.monotonic()
    with faulty(answer) as server, bitwright.Client(server.url) as client:
        with pytest.raises(bitwright.WaitTimeout, match="polishing after"):
            client.wait("study_1", timeout_s=2.5)
    assert 2.4 <= time.monotonic() - begun < 8
    assert len(server.requests) <= 5
    assert server.requests[1][2]["if-none-match"] == '"1"'
    assert "wait=" in server.requests[1][1]


def test_a_server_away_in_the_middle_of_a_wait_ends_in_time() -> None:
    with faulty(lambda *_: as_json(200, RUNNING)) as server:
        with bitwright.Client(server.url) as client:
            changes = client.changes("study_1", timeout_s=1.5)
            assert next(changes).state == "polishing"
            server.answer = lambda *_: as_json(503, {})
            begun = time.monotonic()
            with pytest.raises((bitwright.WaitTimeout, bitwright.ApiError)):
                list(changes)
    assert time.monotonic() - begun < 8
