"""A first run on a card: whatever fails, hangs or takes the device along, everything else comes home."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_exactness, gpu_speed, gpu_validation
from benchmarks.gpu_bench import LOST, SAVED, Bench
from kernels.backends.base import OpFailed
from kernels.backends.cuda_device import DeviceLost
from kernels.backends.cuda_fake import FakeCudaDevice
from kernels.latency_table import LatencyTable


def bench_in(folder: Path, **fails: Exception) -> Bench:
    return Bench(FakeCudaDevice(fails_on=dict(fails)), is_dry=True, folder=folder, seconds=120.0)


def saved(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / SAVED).read_text())
    return found


def test_a_part_that_raises_leaves_its_traceback_and_the_next_goes_on(tmp_path: Path) -> None:
    bench, ran = bench_in(tmp_path), []

    def broken() -> None:
        raise ZeroDivisionError("of all things")

    bench.part("first", broken)
    bench.part("second", lambda: ran.append("second"))
    bench.part("second", lambda: ran.append("again"))
    assert ran == ["second"]
    found = saved(tmp_path)
    assert found["done"] == ["first", "second"]
    assert "ZeroDivisionError: of all things" in found["failures"]["first"]
    assert "in broken" in found["failures"]["first"]


def test_a_lost_device_names_its_kernel_and_the_part_continues_without_it(tmp_path: Path) -> None:
    bench = bench_in(tmp_path)

    def loses() -> None:
        with bench.running("gemm_s8 16x64 /4"):
            raise DeviceLost("illegal address")

    with pytest.raises(DeviceLost):
        bench.part("w8a8", loses)
    bench.lost("illegal address")
    again = bench_in(tmp_path)
    again.resume(saved(tmp_path))
    assert (again.avoid, again.done) == (["gemm_s8 16x64"], [])
    assert again.failures == {"w8a8: gemm_s8 16x64": "illegal address"}
    with pytest.raises(OpFailed, match="took the device along"), again.running("gemm_s8 16x64 /2"):
        pass


def test_a_part_lost_without_a_known_kernel_is_over(tmp_path: Path) -> None:
    bench = bench_in(tmp_path)
    bench.doing = {"part": "runs"}
    bench.lost("the process ended")
    assert bench.done == ["runs"]


def test_exactness_goes_on_behind_the_shape_and_without_the_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_exactness, "CASES", gpu_exactness.CASES[:2])
    monkeypatch.setattr(gpu_exactness, "EPILOGUES", ())
    monkeypatch.setattr(gpu_exactness, "BOUNDARIES", ())
    bench = bench_in(tmp_path)
    bench.device.fails_on = {f"gemm_s8{kind} {m}x{n}": DeviceLost("gone") for kind in ("", "_wgmma") for m in
                             (16, 32, 64, 128, 256) for n in (64, 128, 256)}  # type: ignore[attr-defined]  # fmt: skip
    starts = 0
    while True:
        starts += 1
        try:
            gpu_exactness.exactness(bench)
            break
        except DeviceLost as error:
            bench.lost(str(error))
            device, bench = bench.device, bench_in(tmp_path)
            bench.device = device
            bench.resume(saved(tmp_path))
    assert starts == 5, "each of the four shapes ends a process, the fifth start is clean"
    assert {bar.name: bar.value for bar in bench.bars} == {"exact linear w8a8": 0.0, "exact linear w4a8": 4.0}
    assert 1 <= len(bench.avoid) <= 4
    assert all("gone" in entry for entry in bench.notes["exact linear w8a8: wrong"])


def test_speed_keeps_the_parts_that_a_broken_library_does_not_touch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_speed, "repeats_for", lambda us, copies: max(copies.weights, copies.inputs))
    monkeypatch.setattr(gpu_speed, "DECODING_ROWS", (1,))
    bench = bench_in(tmp_path, **{"torch._int_mm": RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")})
    gpu_speed.speed(bench)
    assert set(bench.failures) == {"4096^3", "few rows"}
    assert {bar.name.split(",")[0] for bar in bench.bars} == {
        "w4a16 of copy bandwidth",
        "conv int8 of bf16 channels-last",
    }
    assert any("CUBLAS_STATUS_NOT_SUPPORTED" in str(why) for name, why in bench.notes.items() if "left out" in name)
    rows = [value for name, value in bench.notes.items() if name.startswith("us by precision")]
    assert len(rows) == 3
    assert all({"fp16 torch fp16", "w4a4 ours"} <= set(row) for row in rows)


def test_a_table_that_a_lost_device_cut_short_is_continued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_validation, "fit_and_predict", lambda *arguments: None)
    bench = bench_in(tmp_path)
    bench.device.fails_on = {"gemm_w4a8 16x128": DeviceLost("gone")}  # type: ignore[attr-defined]
    with pytest.raises(DeviceLost):
        gpu_validation.validate_encoder(bench)
    bench.lost("gone")
    again = bench_in(tmp_path)
    again.resume(saved(tmp_path))
    gpu_validation.validate_encoder(again)
    assert again.avoid == ["gemm_w4a8 16x128"]
    table = LatencyTable.loads((tmp_path / "latency_table_encoder.json").read_text())
    assert not any(row.executed_kernel.startswith("gemm_w4a8 16x128") for row in table.rows)
    assert again.done == ["encoder: rows", "encoder: runs"]


SECTION = """
import pathlib, sys, time
from benchmarks.gpu_bench import Bench
bench = Bench(None, is_dry=False, folder=pathlib.Path(sys.argv[1]), seconds=60.0)
def hang():
    with bench.running("gemm_s8_wgmma 128x256"):
        time.sleep(60)
bench.part("hangs", hang, limit_s=1.0)
"""


def test_a_kernel_that_hangs_ends_its_process_and_is_named(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SECTION, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == LOST, done.stderr[-2000:]
    found = saved(tmp_path)
    assert found["avoid"] == ["gemm_s8_wgmma 128x256"]
    assert "not done after 1 s" in found["failures"]["hangs: gemm_s8_wgmma 128x256"]
    assert "in hang" in done.stderr


def test_a_section_is_started_again_until_it_ends_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers, seen = [LOST, -signal.SIGSEGV, 0], []

    def run(command: list[str], **more: Any) -> Any:
        folder = Path(command[command.index("--folder") + 1])
        document = saved(folder)
        seen.append((document.get("avoid"), document.get("done", [])))
        done = [*document.get("done", []), f"part {len(seen)}"]
        (folder / SAVED).write_text(
            json.dumps({**document, "done": done, "doing": {"part": "x", "kernel": f"k{len(seen)}"}})
        )
        return subprocess.CompletedProcess(command, answers[len(seen) - 1])

    monkeypatch.setattr(subprocess, "run", run)
    avoid = ["known"]
    found = gpu._run(gpu.Section("speed", 60.0), tmp_path, time.monotonic(), True, avoid)
    assert (found["status"], found["done"]) == ("done", ["part 1", "part 2", "part 3"])
    assert seen[2] == (["known", "k2"], ["part 1", "part 2"])
    assert avoid == ["known", "k2"]
    assert "signal 11" in found["failures"]["x: k2"]


def test_a_section_that_dies_before_it_begins_is_not_started_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[int] = []

    def run(command: list[str], **more: Any) -> Any:
        calls.append(1)
        return subprocess.CompletedProcess(command, -signal.SIGKILL)

    monkeypatch.setattr(subprocess, "run", run)
    found = gpu._run(gpu.Section("speed", 60.0), tmp_path, time.monotonic(), True, [])
    assert (found["status"], len(calls)) == ("failed", 1)
