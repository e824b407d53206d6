"""`bitwright-server measure`: a folder measured here, and handed in at a server that cannot reach this machine."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from workers.server_cli import app

SHAPE = "linear_m1_k64_n64_b1"


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["measure", *arguments])
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder measured on the deterministic device."""
    folder = tmp_path_factory.mktemp("measured")
    status, said = run("--shapes", SHAPE, "--hardware", "fake", "--out", str(folder))
    assert status == 0, said
    return folder


def test_a_folder_holds_the_device_and_its_rows(measured: Path) -> None:
    table = json.loads((measured / "latency_table.json").read_text())
    profile = json.loads((measured / "profile.json").read_text())
    assert table["profile"] == profile["slug"]
    assert {row["signature"] for row in table["rows"]} == {SHAPE}


def test_a_carried_folder_is_handed_in_once(measured: Path, http: httpx.Client) -> None:
    arguments = ("--out", str(measured), "--server", str(http.base_url), "--name", "device-in-the-lab")
    status, said = run(*arguments)
    assert status == 0, said
    assert "device-in-the-lab version 1" in said
    table = http.get("/v1/hardware-profiles/device-in-the-lab/latency-table").json()
    assert {row["signature"] for row in table["rows"]} == {SHAPE}
    assert run(*arguments)[0] == 0, "handing in twice says nothing new"
    versions = http.get("/v1/hardware-profiles/device-in-the-lab/latency-tables").json()["items"]
    assert len(versions) == 1


def test_what_cannot_be_done_says_so(measured: Path, http: httpx.Client, tmp_path: Path) -> None:
    assert run("--out", str(tmp_path))[0] == 2
    status, said = run("--out", str(tmp_path), "--server", str(http.base_url))
    assert (status, "profile.json is missing" in said) == (2, True)
    status, said = run("--out", str(measured), "--server", "http://127.0.0.1:9")
    assert (status, "is this the address" in said) == (2, True)
    status, said = run("--out", str(measured), "--server", str(http.base_url), "--name", "../x")
    assert (status, "invalid_request" in said) == (2, True)
    status, said = run("--shapes", "nonsense", "--hardware", "fake", "--out", str(tmp_path))
    assert status == 2
