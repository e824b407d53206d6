"""The command backend: reported milliseconds are believed, everything else is an error that shows the command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kernels.backends.command import Command, CommandFailed
from kernels.errors import BackendUnavailable
from kernels.microbench import empty_table, measure_missing
from kernels.op_shape import LinearShape
from kernels.precision import FP32, Precision
from kernels.registry import load_profile

OP = LinearShape(2, 32, 16)
TIMER = """
import sys
content = open(sys.argv[1], "rb").read()
assert b"QuantizeLinear" in content or b"Gemm" in content
print("loaded", len(content), "bytes")
print(0.5 * int(sys.argv[2]))
print("1.5 ms")
print(2.5)
"""


def command_line(folder: Path, program: str, arguments: str = "{model} {threads}") -> str:
    path = folder / "timer.py"
    path.write_text(program)
    return f"{sys.executable} {path} {arguments}"


def test_rows_come_from_the_lines_that_are_a_number(tmp_path: Path) -> None:
    profile = load_profile("fake")
    backend = Command(profile, command_line(tmp_path, TIMER))
    result = measure_missing(backend, profile, [(OP, FP32), (OP, Precision("w8a8"))], 1, empty_table(profile))
    row = result.table.lookup(OP, FP32, 1)
    assert row.median_us == 1500.0
    assert row.samples >= 5
    assert row.executed_kernel == "fake_linear_fp32 (as the profile says)"
    assert result.table.runs[row.run]["clock"] == "reported_by_command"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('no such device')", "no such device"),
        ("print('done')", "printed no milliseconds"),
        ("print(0.0)", "printed no milliseconds"),
    ],
)
def test_a_command_that_does_not_deliver_is_reported(tmp_path: Path, program: str, message: str) -> None:
    profile = load_profile("fake")
    backend = Command(profile, command_line(tmp_path, program))
    with pytest.raises(CommandFailed, match=message) as caught:
        measure_missing(backend, profile, [(OP, FP32)], 1, empty_table(profile))
    assert caught.value.code == "command_failed"


def test_a_command_needs_a_place_for_the_model_and_a_program() -> None:
    with pytest.raises(CommandFailed, match="no place for the model"):
        Command(load_profile("fake"), "trtexec --quiet")
    backend = Command(load_profile("fake"), "/no/such/program {model}")
    with pytest.raises(CommandFailed, match="No such file"):
        backend.time_ms(Path("any.onnx"), 1)


def test_a_command_that_hangs_is_stopped(tmp_path: Path) -> None:
    line = command_line(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(CommandFailed, match="timed out"):
        Command(load_profile("fake"), line, time_limit_s=0.2).time_ms(Path("any.onnx"), 1)


def test_a_command_has_no_outputs(tmp_path: Path) -> None:
    backend = Command(load_profile("fake"), command_line(tmp_path, TIMER))
    with pytest.raises(BackendUnavailable):
        backend.load_model(b"", 1)
    with pytest.raises(BackendUnavailable):
        backend.build(OP, FP32, 1).output()
