"""Who may do what over HTTP: the matrix of scopes and routes, logins of browsers, and binds that are refused."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from service.app import create_app
from service.keys.keys import create_key, revoke_key
from service.keys.scopes import SCOPES
from service.settings import Settings
from service.store.database import Database
from service.store.models import ApiKeyRow
from tests.contracts.test_rest_api import problem
from tests.service.stack import ONNX_BYTES, SentMessages, announce_tiny_worker, quick_settings, serving, study_body
from workers.server_cli import app as server

OPEN_PATHS = {"/healthz", "/readyz"}


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command run here sets up logging to a stream that ends with it."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def locked(database_url: str, tmp_path: Path, messages: SentMessages) -> Iterator[httpx.Client]:
    """A client without a key of a server that asks for keys."""
    settings = quick_settings(tmp_path / "data", database_url, auth="keys")
    announce_tiny_worker(settings)
    with serving(settings, messages) as client:
        yield client


def key(database: Database, *scopes: str) -> dict[str, str]:
    with database.write() as session:
        return {"Authorization": f"Bearer {create_key(session, name='test', scopes=scopes)[1]}"}


def test_every_operation_asks_for_a_key_and_its_scope(locked: httpx.Client, database: Database) -> None:
    deeds = {"get": "read", "head": "read"}
    nouns = {"hardware-profiles": "hardware", "artifacts": "studies", "compare": "studies", "fleet": "studies"}
    known_nouns = {scope.partition(":")[0] for scope in SCOPES}
    headers = {scope: key(database, scope) for scope in SCOPES}
    tried = 0
    for path, operations in locked.get("/openapi.json").json()["paths"].items():
        if path in OPEN_PATHS:
            continue
        for method in operations:
            address = re.sub(r"\{[^}]+\}", "x", path)
            problem(locked.request(method, address), 401, "auth_missing") if method != "head" else None
            noun = path.split("/")[2] if path.startswith("/v1/") else "server"
            noun = nouns.get(noun, noun if noun in known_nouns else "server")
            scope = f"{noun}:{deeds.get(method, 'write')}"
            others = [name for name in SCOPES if name not in (scope, f"{noun}:write", "admin")]
            refused = locked.request(method, address, headers=headers[others[tried % len(others)]])
            assert refused.status_code == 403, (method, path)
            passed = locked.request(method, address, headers=headers[scope])
            assert passed.status_code not in (401, 403), (method, path, passed.text)
            tried += 1
    assert tried >= 17


def test_wrong_keys(locked: httpx.Client, database: Database) -> None:
    headers = key(database, "read")
    assert locked.get("/v1/models", headers=headers).status_code == 200
    missing = locked.get("/v1/models")
    problem(missing, 401, "auth_missing")
    assert missing.headers["www-authenticate"] == "Bearer"
    text = headers["Authorization"]
    for wrong in ("Bearer x", text[:-1], "Bearer bw_0000000000_" + "0" * 40, "Bearer \xff\xfe"):
        answer = locked.get("/v1/models", headers={"Authorization": wrong.encode("latin-1")})  # type: ignore[dict-item]
        problem(answer, 401, "auth_invalid")
    problem(locked.get("/v1/models", headers={"Authorization": "Basic eDp5"}), 401, "auth_missing")
    problem(locked.get("/v1/models", headers={"Cookie": "bitwright_login=x"}), 401, "auth_invalid")
    found = problem(locked.post("/v1/studies", headers=headers, json=study_body("x")), 403, "scope_missing")
    assert "studies:write" in found["hint"]
    with database.write() as session:
        row = session.get_one(ApiKeyRow, text.split("_")[1])
        assert row.last_used_at is not None
        revoke_key(session, row.id)
    problem(locked.get("/v1/models", headers=headers), 401, "auth_invalid")


def test_a_stranger_uploads_nothing(locked: httpx.Client, tmp_path: Path) -> None:
    problem(locked.post("/v1/models", files={"file": ("m.onnx", ONNX_BYTES)}), 401, "auth_missing")
    assert not list((tmp_path / "data").rglob("*uploads/*"))


def test_health_and_the_contract_need_no_key(locked: httpx.Client) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json", "/login", "/static/bitwright.css"):
        assert locked.get(path).status_code == 200, path


def test_a_browser_logs_in(locked: httpx.Client, database: Database) -> None:
    text = key(database, "write")["Authorization"].removeprefix("Bearer ")
    sent = locked.get("/studies/study_x?a=b")
    assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=/studies/study_x%3Fa%3Db")
    assert locked.get(f"/?name={'x' * 400}").headers["location"] == "/login?next=/"
    form = locked.get(sent.headers["location"])
    assert 'value="/studies/study_x?a=b"' in form.text
    refused = locked.post("/login", data={"key": "bw_wrong", "next": "/"})
    assert refused.status_code == 401
    assert "set-cookie" not in refused.headers
    entered = locked.post("/login", data={"key": text, "next": "/?state=queued"})
    assert (entered.status_code, entered.headers["location"]) == (303, "/?state=queued")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert text not in cookie
    assert locked.get("/").status_code == 200, "the client kept the cookie"
    assert locked.get("/v1/studies").status_code == 200
    upload = {"file": ("m.onnx", ONNX_BYTES)}
    problem(locked.post("/v1/models", files=upload), 403, "csrf_missing")
    problem(locked.post("/v1/models", files=upload, headers={"X-CSRF-Token": "0" * 64}), 403, "csrf_missing")
    token = entered.headers["set-cookie"].partition("=")[2].partition(";")[0]
    from service.keys.logins import csrf_token

    assert locked.post("/v1/models", files=upload, headers={"X-CSRF-Token": csrf_token(token)}).status_code == 201
    assert locked.post("/logout").status_code == 303
    locked.cookies.set("bitwright_login", token)
    problem(locked.get("/v1/studies"), 401, "auth_invalid")
    assert locked.get("/").status_code == 303


@pytest.mark.parametrize("goal", ["https://evil.example/", "//evil.example", "/\\evil.example", "evil", "/a\nb"])
def test_a_login_leads_to_this_site_only(locked: httpx.Client, database: Database, goal: str) -> None:
    text = key(database, "read")["Authorization"].removeprefix("Bearer ")
    assert locked.post("/login", data={"key": text, "next": goal}).headers["location"] == "/"


def test_without_keys_everything_is_allowed(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"Authorization": "Bearer rubbish"}).status_code == 200
    assert http.get("/", follow_redirects=False).status_code == 200


@pytest.mark.parametrize("command", ["api", "up"])
@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_an_open_bind_without_keys_is_refused(
    command: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITWRIGHT_HOST", host)
    answer = CliRunner().invoke(server, [command, "--data-folder", str(tmp_path / "data")])
    assert answer.exit_code == 2
    assert "refusing to listen" in answer.stderr
    assert not (tmp_path / "data").exists(), "nothing was started"


def test_keys_on_the_command_line(tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        answer = CliRunner().invoke(server, ["keys", *words, "--data-folder", str(tmp_path)])
        return answer.exit_code, answer.stdout, answer.stderr

    status, text, _ = run("create", "ci pipeline", "--scope", "studies:write", "--scope", "models:read", "--days", "30")
    assert status == 0
    prefix = text.split("_")[1]
    (listed,) = json.loads(run("list", "--json")[1])
    assert (listed["prefix"], listed["scopes"]) == (prefix, ["models:read", "studies:write"])
    assert listed["expires_at"] > listed["created_at"]
    assert text.strip().rpartition("_")[2] not in run("list")[1]
    assert run("revoke", prefix)[0] == 0
    assert "revoked" in run("list")[1]
    assert run("revoke", "nobody")[0] == 2
    status, _, error = run("create", "x", "--scope", "everything")
    assert status == 2
    assert "studies:write" in error


def test_the_settings_reach_the_application(tmp_path: Path) -> None:
    app = create_app(Settings(data_folder=tmp_path, auth="keys"), send=SentMessages())
    schemes = app.openapi()["components"]["securitySchemes"]
    assert (schemes["key"]["scheme"], schemes["login"]["in"]) == ("bearer", "cookie")
    app.state.parts.database.close()
