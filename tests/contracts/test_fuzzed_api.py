"""Every operation of the OpenAPI document under generated requests, right and wrong: no answer breaks the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from service.keys.keys import create_key
from service.openapi import DOCUMENT
from service.store.database import Database
from tests.contracts.test_hardware_api import profile_body, table_body
from tests.service.stack import SentMessages, announce_tiny_worker, quick_settings, serving, study_body, upload_model

EXAMPLES = 8
ACCEPTED = ["2xx", "3xx", 401, 403, 404, 409, "5xx"]
CONFIG: dict[str, Any] = {
    "seed": 1,
    # JSON Schema cannot say that a cursor is one an earlier page gave, what the bytes of a file must be, that two
    # fields exclude each other, or that a thing was deleted meanwhile.
    "checks": {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, 410, 415, 422]}},
    # Every boundary of every field of a table or profile takes a minute; these two get random bodies only.
    "operations": [{"include-path-regex": "hardware-profiles", "phases": {"coverage": {"enabled": False}}}],
    "generation": {"deterministic": True, "database": "none", "max-examples": EXAMPLES},
}
KNOWN: dict[str, str] = {}
"""Ids that exist, by the name of the path's parameter."""
FOUND: set[str] = set()
"""Paths that were answered with 200."""
contract = schemathesis.openapi.from_path(DOCUMENT, config=SchemathesisConfig.from_dict(CONFIG))


@pytest.fixture(scope="module")
def api(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a live server that asks for keys and holds one of everything."""
    folder = tmp_path_factory.mktemp("fuzzed")
    path = folder / "bitwright.sqlite3"
    path.write_bytes(sqlite_template.read_bytes())
    settings = quick_settings(folder / "data", f"sqlite:///{path}", auth="keys", wait_limit_s=0.05)
    announce_tiny_worker(settings)
    database = Database(settings.resolved_database_url)
    with database.write() as session:
        key = create_key(session, name="fuzz", scopes=["admin"])[1]
    database.close()
    with serving(settings, SentMessages()) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        model = upload_model(client)
        study = client.post("/v1/studies", json=study_body(model)).json()["id"]
        KNOWN.update(model_id=model, study_id=study, slug="my-phone")
        assert client.post("/v1/hardware-profiles", json=profile_body()).status_code == 201
        table = client.post("/v1/hardware-profiles/my-phone/latency-tables", json=table_body())
        assert table.status_code == 201
        yield client
    assert {"/v1/studies/{study_id}", "/v1/hardware-profiles/{slug}"} <= FOUND, "addresses never named what exists"


@contract.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Half of the addresses name things that exist."""
    for name, value in (path_parameters or {}).items():
        if name in KNOWN and len(str(value)) % 2:
            path_parameters = {**(path_parameters or {}), name: KNOWN[name]}
    return path_parameters


@contract.parametrize()
@settings(deadline=None, max_examples=EXAMPLES, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_the_contract(case: schemathesis.Case, api: httpx.Client) -> None:
    key = {"Authorization": api.headers["Authorization"]}
    answer = case.call_and_validate(base_url=str(api.base_url), headers=key)
    if answer.status_code == 200:
        FOUND.add(case.operation.path)
