"""What a client asks of a solved study: other budgets, its own evaluator, a retry, a clone."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

import bitwright
from bitwright.cli_shared import TIMEOUT, USER_ERROR
from service.blobs import Blobs
from service.settings import Settings
from service.store.database import Database
from tests.client.test_cli import cli
from tests.contracts.test_stage_claims import ERROR, claimed
from tests.contracts.test_studies_api import work_off
from workers import claims
from workers.supervisor import Supervisor


@pytest.fixture
def worker(settings: Settings, database: Database) -> Supervisor:
    return Supervisor(settings, database, Blobs(settings.resolved_blob_url), "worker_test")


def submitted(client: bitwright.Client, model_file: Path, **more: object) -> str:
    return client.submit(model_file, hardware="tiny-cpu", budgets={"latency_ms": "0.6x"}, **more).id  # type: ignore[arg-type]


def test_other_budgets(
    client: bitwright.Client, http: httpx.Client, model_file: Path, worker: Supervisor, database: Database
) -> None:
    study = submitted(client, model_file)
    with pytest.raises(bitwright.Conflict) as early:
        client.allocate(study, {"latency_ms": 1.5})
    assert early.value.code == "not_ready"
    work_off(worker, database)
    found = client.allocate(study, {"latency_ms": 1.45}, within=1.0)
    assert (found.origin, found.is_terminal, found.is_infeasible) == ("front", True, False)
    assert found.result is not None
    assert found.result["predicted"] == {"latency_ms": pytest.approx(1.4)}
    with pytest.raises(bitwright.WaitTimeout, match="goes on"):
        client.allocate(study, {"latency_ms": 1.45}, exact=True, timeout_s=0.3)
    assert cli(http, "allocate", study, "--latency", "1.45", "--exact", "--timeout", "0.2").returncode == TIMEOUT
    work_off(worker, database)
    solved = cli(http, "allocate", study, "--latency", "1.45", "--exact", "--json")
    assert json.loads(solved.stdout)["result"]["precisions"] == {"a": "w4a8"}
    assert "1 × w4a8" in cli(http, "allocate", study, "--latency", "1.45", "--exact").stdout
    assert cli(http, "allocate", study).returncode == USER_ERROR, "no budget"
    listed = client.allocations(study)
    assert {one["origin"] for one in listed["items"]} == {"front", "solved"}
    assert listed["items"][0]["study"] == study
    assert cli(http, "allocations", study).returncode == 0


def test_the_users_own_evaluator(
    client: bitwright.Client, model_file: Path, worker: Supervisor, database: Database
) -> None:
    study = submitted(client, model_file, evaluator={"metric": "mAP"})
    work_off(worker, database)
    waiting = client.study(study)
    assert not waiting.is_terminal
    assert waiting.waiting_for
    asked = client.evaluations(study)
    assert asked["missing"]
    told = client.post_evaluations(study, {name: {"mAP": 0.5} for name in asked["missing"]})
    assert told["missing"] == []
    work_off(worker, database)
    assert client.wait(study, timeout_s=20).succeeded


def test_retry_and_clone(client: bitwright.Client, http: httpx.Client, model_file: Path, database: Database) -> None:
    study = submitted(client, model_file)
    assert cli(http, "retry", study).returncode == USER_ERROR
    assert claims.fail(database, claimed(database, study, "check"), {**ERROR, "category": "infrastructure"})
    again = client.retry(study)
    assert again.id != study
    assert not again.is_terminal
    copy = client.clone(study, name="copied", seed=7)
    assert (copy.name, copy.raw["spec"]["seed"]) == ("copied", 7)
    assert copy.raw["spec"]["targets"] == again.raw["spec"]["targets"]
    assert json.loads(cli(http, "clone", study, "--json").stdout)["state"] == "queued"
