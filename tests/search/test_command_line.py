"""The command line: a verdict as files, tables on standard output, refusals with code and hint, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import images, small_cnn
from typer.testing import CliRunner

from search.__main__ import app

run = CliRunner().invoke


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    onnx.save(small_cnn(width=32).model, folder / "net.onnx")
    np.savez(folder / "samples.npz", **images(384))
    return str(folder / "net.onnx"), str(folder / "samples.npz")


def test_run_leaves_report_and_artifact(files: tuple[str, str], tmp_path: Path) -> None:
    model, data = files
    out = tmp_path / "result"
    done = run(app, ["run", model, "--data", data, "--hardware", "fake", "--size", "0.6x", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    (verdict,) = json.loads(done.stdout)["verdicts"]
    assert verdict["verdict"] in ("chosen", "no_gain")
    assert {"report.json", "report.html", "artifact_0.onnx", "session_options_0.json", "bit_plan_0.json"} <= {
        path.name for path in out.iterdir()
    }


def test_weights_in_any_file_beside_the_model(files: tuple[str, str], tmp_path: Path) -> None:
    beside = tmp_path / "model" / "net.onnx"
    beside.parent.mkdir()
    onnx.save(onnx.load(files[0]), beside, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (beside.parent / "weights.bin").rename(tmp_path / "blob")
    (beside.parent / "weights.bin").symlink_to(tmp_path / "blob")  # as caches of downloaded models keep them
    asked = ["run", str(beside), "--data", files[1], "--hardware", "fake", "--size", "relative:0.5"]
    done = run(app, [*asked, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["targets"][0]["budgets"][0]["asked"] == "size_bytes ≤ 0.5 of the reachable range"
    (beside.parent / "weights.bin").unlink()
    assert "external_data_missing" in run(app, asked).output


def test_hardware_that_is_not_at_hand_is_estimated_on_request(files: tuple[str, str], tmp_path: Path) -> None:
    model, data = files
    asked = ["run", model, "--data", data, "--hardware", "a100", "--latency", "1x", "--out", str(tmp_path), "--json"]
    done = run(app, [*asked, "--estimates"])
    assert done.exit_code == 0, done.output
    (verdict,) = json.loads(done.stdout)["verdicts"]
    assert "are estimates, nothing was run there" in verdict["sentence"]


def test_unreachable_budget_has_its_own_exit_status(files: tuple[str, str], tmp_path: Path) -> None:
    model, data = files
    done = run(app, ["run", model, "--data", data, "--hardware", "fake", "--size", "10", "--out", str(tmp_path)])
    assert done.exit_code == 4
    assert "infeasible" in done.output


@pytest.mark.parametrize(
    "arguments, code",
    [
        (["run", "missing.onnx", "--size", "0.5x"], "file_missing"),
        (["run", "MODEL"], "bad_study"),
        (["run", "MODEL", "--latency", "fast"], "bad_budget"),
        (["run", "MODEL", "--latency", "relative:1.5"], "bad_budget"),
        (["run", "MODEL", "--latency", "relative:half"], "bad_budget"),
        (["run", "MODEL", "--size", "0.5x", "--hardware", "abacus"], "hardware_unknown"),
        (["run", "MODEL", "--size", "0.5x", "--hardware", "fake", "--pin", "nothing=w8a8"], "layer_unknown"),
        (["run", "MODEL", "--size", "0.5x", "--hardware", "fake", "--loss", "y=mse:7"], "loss_declaration_invalid"),
        (["run", "MODEL", "--max-loss", "0.1", "--accuracy-drop", "0.1", "--hardware", "fake"], "bad_study"),
        (["run", "DATA", "--size", "0.5x", "--hardware", "fake"], "model_format_unsupported"),
        (["audit", "DATA"], ""),
    ],
)
def test_refusals_name_code_and_hint(files: tuple[str, str], arguments: list[str], code: str) -> None:
    named = [{"MODEL": files[0], "DATA": files[1]}.get(word, word) for word in arguments]
    done = run(app, named)
    assert done.exit_code == 2
    assert code in done.output
    assert "hint:" in done.output


def test_what_an_output_means_is_declared(files: tuple[str, str], tmp_path: Path) -> None:
    model, data = files
    (output,) = [output.name for output in onnx.load(model).graph.output]
    asked = ["run", model, "--data", data, "--hardware", "fake", "--max-loss", "0.5", "--out", str(tmp_path)]
    done = run(app, [*asked, "--loss", f"{output}=mse"])
    assert done.exit_code == 0, done.output
    (loss,) = json.loads((tmp_path / "report.json").read_text())["loss"]["outputs"]
    assert loss["kind"] == "mse"
    assert "kind[:axis]" in run(app, [*asked, "--loss", f"{output}=softmax_kl:last"]).output


def test_measure_continues_the_table_it_finds(files: tuple[str, str], tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    asked = ["measure", "--model", files[0], "--hardware", "fake", "--out", str(table)]
    assert run(app, asked).exit_code == 0
    first = json.loads(table.read_text())
    assert run(app, asked).exit_code == 0
    assert json.loads(table.read_text()) == first
    assert (tmp_path / "table_fit.json").exists()


def test_measure_writes_table_and_fit(files: tuple[str, str], tmp_path: Path) -> None:
    done = run(app, ["measure", "--model", files[0], "--hardware", "fake", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "latency_table.json").read_text())["rows"]
    assert json.loads((tmp_path / "latency_fit.json").read_text())["runs"]


def test_audit_prints_each_layer(files: tuple[str, str]) -> None:
    done = run(app, ["audit", files[0], "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["layers"]) == len(small_cnn().layers)
