"""`python -m kernels`: tables that continue, profiles as JSON, and errors a person can act on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kernels.__main__ import app
from kernels.hardware_profile import HardwareProfile
from kernels.latency_table import LatencyTable
from kernels.registry import load_profile

LINEAR = "linear_m1_k64_n10_b1"
EMBEDDING = "embedding_t4_r9_w16"


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def test_measure_writes_a_table_and_continues_it(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    first = run("measure", "--shapes", LINEAR, "--hardware", "fake", "--threads", "2", "--out", str(out))
    assert first.exit_code == 0, first.output
    table = LatencyTable.loads(out.read_text())
    assert {row.precision for row in table.rows} == {"fp32", "w8a8", "w8a8-dynamic", "w4a8", "w4a16-g32"}
    assert {row.threads for row in table.rows} == {2}
    second = run("measure", "--shapes", LINEAR, EMBEDDING, "--hardware", "fake", "--threads", "2", "--out", str(out))
    assert second.exit_code == 0
    grown = LatencyTable.loads(out.read_text())
    assert grown.rows[: len(table.rows)] == table.rows
    assert len(grown.rows) == len(table.rows) + 2
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_shapes_come_from_files_too(tmp_path: Path) -> None:
    lines, listed, out = tmp_path / "shapes.txt", tmp_path / "shapes.json", tmp_path / "table.json"
    lines.write_text(f"# a comment\n{LINEAR}  # and another\n\n{LINEAR}\n")
    listed.write_text(json.dumps([EMBEDDING]))
    words = ("--hardware", "fake", "--precisions", "fp32", "--out", str(out))
    assert run("measure", "--shapes", str(lines), "--shapes", str(listed), *words).exit_code == 0
    assert {row.signature for row in LatencyTable.loads(out.read_text()).rows} == {LINEAR, EMBEDDING}


def test_without_out_the_figures_are_printed() -> None:
    result = run("measure", "--shapes", LINEAR, "--hardware", "fake", "--precisions", "fp32,w8a8")
    assert result.exit_code == 0
    assert "2.132" in result.output


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--shapes", "linear_m1"], "bad_op_shape"),
        (["--shapes", "no/such/file.txt"], "bad_op_shape"),
        ([], "bad_op_shape"),
        (["--shapes", LINEAR, "--hardware", "tpu"], "hardware_unknown"),
        (["--shapes", LINEAR, "--precisions", "int8"], "unsupported_precision"),
        (["--shapes", LINEAR, "--threads", "1000"], "threads_unavailable"),
        (["--shapes", LINEAR, "--precisions", "w2a2"], "not_measured"),
        (["--shapes", LINEAR, "--out", "/no/such/folder/t.json"], "not_writable"),
        (["--shapes", LINEAR, "--command", "trtexec"], "command_failed"),
    ],
)
def test_errors_have_a_code_a_hint_and_status_2(words: list[str], code: str) -> None:
    words = words if "--hardware" in words else [*words, "--hardware", "fake"]
    result = run("measure", *words)
    assert result.exit_code == 2
    assert f"[{code}]" in result.output
    assert "hint:" in result.output


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_table_is_not_overwritten(tmp_path: Path, content: str) -> None:
    out = tmp_path / "table.json"
    out.write_text(content)
    result = run("measure", "--shapes", LINEAR, "--hardware", "fake", "--out", str(out))
    assert result.exit_code == 2
    assert "[bad_latency_table]" in result.output
    assert out.read_text() == content


@pytest.mark.parametrize(("name", "content"), [("s.json", "{}"), ("s.json", "["), ("s.txt", "\udce9")])
def test_a_file_that_holds_no_shapes_is_refused(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    result = run("measure", "--shapes", str(path), "--hardware", "fake")
    assert result.exit_code == 2
    assert "[bad_op_shape]" in result.output


def test_a_table_of_another_device_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    assert run("measure", "--shapes", LINEAR, "--hardware", "fake", "--out", str(out)).exit_code == 0
    result = run("measure", "--shapes", LINEAR, "--hardware", "cpu-local", "--out", str(out))
    assert result.exit_code == 2
    assert "[table_mismatch]" in result.output


def test_profile_prints_writes_and_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    assert run("profile", "--out", str(out)).exit_code == 0
    assert load_profile(str(out)) == load_profile("cpu-local")
    printed = run("profile", "--hardware", "fake", "--json")
    assert HardwareProfile.from_json(json.loads(printed.stdout)) == load_profile("fake")
    assert "QLinearConv" in run("profile").output
    unknown = run("profile", "--hardware", "abacus")
    assert unknown.exit_code == 2
    assert "[hardware_unknown]" in unknown.output
