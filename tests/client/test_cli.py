"""The command line: exit statuses, and JSON alone on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

import bitwright
from bitwright.cli import app
from bitwright.cli_shared import FAILED, INFEASIBLE, OK, USER_ERROR, exit_status
from bitwright.records import Study
from service.settings import Settings
from service.store.database import Database
from service.store.stage_logs import write_log
from tests.contracts.test_rest_api import publish
from tests.contracts.test_stage_claims import ERROR, claimed, stages_of
from workers import claims


@dataclass(frozen=True)
class Done:
    """A command's end."""

    returncode: int
    stdout: str
    stderr: str


def cli(http: httpx.Client, *arguments: str) -> Done:
    """A command in this process; `test_the_program_starts` runs it as a program."""
    ended = CliRunner().invoke(app, arguments, env={"BITWRIGHT_URL": str(http.base_url), "COLUMNS": "200"})
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return Done(ended.exit_code, ended.stdout, ended.stderr)


def test_the_program_starts(http: httpx.Client) -> None:
    command = [sys.executable, "-m", "bitwright.cli", "list", "--json"]
    environment = {"BITWRIGHT_URL": str(http.base_url), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert (done.returncode, json.loads(done.stdout)) == (0, [])


def ended(state: str, **more: object) -> Study:
    return Study.from_json({"id": "s", "state": state, "is_terminal": True, **more})


@pytest.mark.parametrize(
    ("study", "status"),
    [
        (ended("succeeded", verdicts=[{"verdict": "chosen"}]), OK),
        (ended("succeeded", verdicts=[{"verdict": "no_gain"}]), OK),
        (ended("succeeded", verdicts=[{"verdict": "chosen"}, {"verdict": "infeasible"}]), INFEASIBLE),
        (ended("failed", error={"category": "user", "code": "c", "message": "m", "hint": "h"}), USER_ERROR),
        (ended("failed", error={"category": "infrastructure", "code": "c", "message": "m", "hint": "h"}), FAILED),
        (ended("cancelled"), FAILED),
    ],
)
def test_exit_statuses(study: Study, status: int) -> None:
    assert exit_status(study) == status


def test_submit_watch_front_download(
    http: httpx.Client, model_file: Path, settings: Settings, database: Database, tmp_path: Path
) -> None:
    budgets = "--latency 0.6x --size 9e5 --bops relative:0.5".split()
    sent = cli(http, "submit", str(model_file), "--hardware", "tiny-cpu", *budgets, "--json")
    assert sent.returncode == 0, sent.stderr
    study = json.loads(sent.stdout)
    assert study["spec"]["targets"][0]["budgets"] == {
        "latency_ms": "0.6x",
        "size_bytes": 900000.0,
        "bops": {"relative": 0.5},
    }
    assert cli(http, "watch", study["id"], "--timeout", "0.2").returncode == 5
    assert cli(http, "front", study["id"]).returncode == 2
    front = [{"hardware": "tiny-cpu", "front": [{"cost": 1.5, "loss": 0.25, "precisions": {"a": "w4a8"}}]}]
    publish(settings, study["id"], {"front.json": json.dumps(front).encode()})
    with database.write() as session:
        stage = stages_of(database, study["id"])["measure0"].id
        write_log(session, stage, attempt=2, text="one [bold]line[/]\nanother", is_cut=True)
    watched = cli(http, "watch", study["id"], "--log")
    assert watched.returncode == 0
    assert "chosen" in watched.stdout
    assert "measure 0 one [bold]line[/]\n" in watched.stderr
    told = cli(http, "log", study["id"]).stdout
    assert told.splitlines() == ["measure · target 0 · attempt 2", "  …", "  one [bold]line[/]", "  another"]
    assert json.loads(cli(http, "log", study["id"], "--lines", "1", "--json").stdout)[0]["lines"] == ["another"]
    assert json.loads(cli(http, "front", study["id"], "--json").stdout) == front[0]
    assert "1 × w4a8" in cli(http, "front", study["id"]).stdout
    got = cli(http, "download", study["id"], "-o", str(tmp_path / "out"), "--json")
    assert json.loads(got.stdout) == [str(tmp_path / "out" / "front.json")]


def test_what_the_user_must_change_ends_with_2(http: httpx.Client, model_file: Path, tmp_path: Path) -> None:
    wrong = cli(http, "submit", str(model_file), "--hardware", "abacus", "--latency", "0.6x", "--json")
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert "hardware_unknown" in wrong.stderr
    assert cli(http, "submit", str(tmp_path / "none.onnx"), "--latency", "1").returncode == 2
    assert cli(http, "submit", str(model_file), "--dim", "sequence", "--latency", "1").returncode == 2
    assert cli(http, "submit", str(model_file), "--loss", "logits=softmax_kl:x", "--latency", "1").returncode == 2
    assert cli(http, "submit", str(model_file), "--latency", "relative:half").returncode == 2
    assert cli(http, "nonsense").returncode == 2


def test_a_failed_study_and_a_missing_server(
    http: httpx.Client, model_file: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    with bitwright.Client(str(http.base_url)) as client:
        study = client.submit(model_file, hardware="tiny-cpu", budgets={"bops": 1.0})
    crash = {**ERROR, "category": "infrastructure"}
    assert claims.fail(database, claimed(database, study.id, "check"), crash)
    failed = cli(http, "watch", study.id, "--json")
    assert failed.returncode == 3
    assert json.loads(failed.stdout)["error"]["code"] == "op_unsupported"
    assert cli(http, "submit", str(model_file), "--latency", "1", "--url", "http://127.0.0.1:9").returncode == 3


def test_list_events_and_cancel(http: httpx.Client, model_file: Path) -> None:
    with bitwright.Client(str(http.base_url)) as client:
        study = client.submit(model_file, hardware="tiny-cpu", budgets={"bops": 1.0}, name="mine")
    assert [one["id"] for one in json.loads(cli(http, "list", "--json").stdout)] == [study.id]
    assert "mine" in cli(http, "list", "--state", "queued").stdout
    cancelled = cli(http, "cancel", study.id, "--json")
    assert json.loads(cancelled.stdout)["state"] == "cancelled"
    kinds = [event["kind"] for event in json.loads(cli(http, "events", study.id, "--json").stdout)]
    assert kinds == ["created", "cancel_requested", "state"]
    assert "cancel_requested" in cli(http, "events", study.id, "--after", "1").stdout
    assert cli(http, "cancel", "study_unknown").returncode == 2
