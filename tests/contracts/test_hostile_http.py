"""Requests no honest client sends: each is answered with a problem, and the server goes on."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.contracts.test_rest_api import PROBLEM_FIELDS, problem
from tests.service.stack import (
    ONNX_BYTES,
    SentMessages,
    announce_tiny_worker,
    quick_settings,
    serving,
    study_body,
    upload_model,
)

HOST_LINE = b"Host: 127.0.0.1\r\n"
FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="m.onnx"\r\n\r\n'


@pytest.fixture(scope="module")
def served(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("hostile")
    path = folder / "a.sqlite3"
    path.write_bytes(sqlite_template.read_bytes())
    settings = quick_settings(folder / "data", f"sqlite:///{path}", upload_limit_bytes=200_000)
    announce_tiny_worker(settings)
    with serving(settings, SentMessages()) as client:
        yield client


def exchange(client: httpx.Client, sent: bytes) -> http.client.HTTPResponse:
    """The answer to these bytes, all of them sent before anything is read."""
    connection = socket.create_connection((client.base_url.host, int(client.base_url.port or 0)), timeout=30)
    with connection:
        connection.sendall(sent)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        answer.body = answer.read()  # type: ignore[attr-defined]
        return answer


def refused(answer: http.client.HTTPResponse, status: int, code: str) -> None:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = json.loads(answer.body)  # type: ignore[attr-defined]
    assert set(body) == PROBLEM_FIELDS
    assert (body["status"], body["code"], bool(body["hint"])) == (status, code, True)
    assert body["request_id"] == answer.headers["x-request-id"]


MALFORMED = {
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\n" + HOST_LINE + b"Host: evil\r\n\r\n",
    "two lengths": b"POST /v1/studies HTTP/1.1\r\n" + HOST_LINE + b"Content-Length: 2\r\nContent-Length: 7\r\n\r\n{}",
    "negative length": b"POST /v1/studies HTTP/1.1\r\n" + HOST_LINE + b"Content-Length: -1\r\n\r\n",
    "endless length": b"POST /v1/studies HTTP/1.1\r\n" + HOST_LINE + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "unknown coding": b"POST /v1/studies HTTP/1.1\r\n" + HOST_LINE + b"Transfer-Encoding: xchunked\r\n\r\n",
    "a byte over ASCII in the path": b"GET /v1/studies/\xc3\xa9 HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
    "TLS to a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_request_gets_a_problem_too(served: httpx.Client, name: str) -> None:
    refused(exchange(served, MALFORMED[name]), 400, "malformed_http")
    assert served.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/studies"])
def test_a_body_without_length_that_grows_too_large_is_answered_once_sent(served: httpx.Client, path: str) -> None:
    kind = b"multipart/form-data; boundary=x" if path == "/v1/models" else b"application/json"
    piece = FORM + b"\x08" * 100_000
    chunked = (b"%x\r\n" % len(piece) + piece + b"\r\n") * 30 + b"0\r\n\r\n"
    head = f"POST {path} HTTP/1.1\r\n".encode() + HOST_LINE
    head += b"Transfer-Encoding: chunked\r\nContent-Type: " + kind + b"\r\n\r\n"
    refused(exchange(served, head + chunked), 413, "too_large")


def test_a_declared_body_that_is_too_large_is_answered_once_sent(served: httpx.Client) -> None:
    head = b"POST /v1/studies HTTP/1.1\r\n" + HOST_LINE + b"Content-Type: application/json\r\n"
    refused(exchange(served, head + b"Content-Length: 3000000\r\n\r\n" + b" " * 3_000_000), 413, "too_large")


def test_a_boundary_nobody_needs_is_a_malformed_form(served: httpx.Client) -> None:
    kind = "multipart/form-data; boundary=" + "a" * 10_000
    problem(served.post("/v1/models", content=FORM, headers={"Content-Type": kind}), 400, "malformed_multipart")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400", "[1, 1.5E+0400]", "-1e999", '{"deep": [NaN]}'])
def test_numbers_that_are_none_are_refused_wherever_they_stand(served: httpx.Client, number: str) -> None:
    body = study_body(upload_model(served), options={"tiny": {"value": "HERE"}})
    text = json.dumps(body).replace('"HERE"', number)
    answer = served.post("/v1/studies", content=text, headers={"Content-Type": "application/json"})
    assert "NaN" in problem(answer, 422, "invalid_request")["detail"]


def test_numbers_and_words_that_only_look_like_it_are_kept(served: httpx.Client) -> None:
    kept = {"small": 1e-300, "large": 1e300, "hash": "12e400", "word": "NaN", "zero": 0.0, "text": ": NaN, 1e999"}
    answer = served.post("/v1/studies", json=study_body(upload_model(served), options={"tiny": kept}))
    assert answer.status_code == 201, answer.text
    assert answer.json()["spec"]["options"]["tiny"] == kept


@pytest.mark.parametrize("query", ["events?after=", "front?target=", "report?target=", "evaluations?target="])
def test_numbers_no_column_holds_are_refused(served: httpx.Client, query: str) -> None:
    study = served.post("/v1/studies", json=study_body(upload_model(served))).json()["id"]
    problem(served.get(f"/v1/studies/{study}/{query}{10**30}"), 422, "invalid_request")


@pytest.mark.parametrize("origin", ["http://[::1", "null", "//", "http://evil:99999999"])
def test_an_origin_that_is_no_address_is_another_site(served: httpx.Client, origin: str) -> None:
    answer = served.post("/v1/studies", json={}, headers={"Origin": origin})
    problem(answer, 403, "cross_site")


def test_an_empty_zip_is_no_model(served: httpx.Client) -> None:
    empty = b"PK\x05\x06" + b"\0" * 18
    problem(served.post("/v1/models", files={"file": ("m.onnx", empty)}), 415, "model_format_unsupported")


def test_a_state_nobody_knows_is_an_error_and_not_an_empty_list(served: httpx.Client) -> None:
    told = problem(served.get("/v1/studies?state=finished"), 422, "invalid_request")
    assert told["errors"][0]["pointer"].startswith("query:state")
    assert "succeeded" in told["errors"][0]["message"]
    assert served.get("/v1/studies?state=succeeded&state=failed").status_code == 200


def test_head_is_get_without_the_body(served: httpx.Client) -> None:
    model = upload_model(served, ONNX_BYTES)
    for path, status in ((f"/v1/models/{model}", 200), ("/v1/models/none", 404), ("/healthz", 200), ("/", 200)):
        head, get = served.head(path), served.get(path)
        assert (head.status_code, get.status_code, head.content) == (status, status, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    problem(served.request("OPTIONS", "/v1/models"), 405, "method_not_allowed")
