"""Everything that only a GPU can answer, in one call of less than nine minutes.

    BITWRIGHT_RESULTS=folder python -m benchmarks.gpu

Sections run one after another, each in a process of its own with a time limit: exactness of every kernel on random
shapes, the same under compute-sanitizer where it is installed, speed against libraries, latency tables and whole
networks. A process that crashes the device's context, hangs or dies is started again behind the part that did it, so a
fault costs one part (`gpu_bench`). What each found is in `results.json`, tracebacks of what failed included, the tables
in `latency_table_*.json`, everything printed in `gpu.log`; all of them are written as they come.

It needs torch built for CUDA, numpy, scipy, onnx and cuda-core, no network, and no installed package: run it from the
repository's root. `--dry-run` goes through every section with a fake device, in small.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar, at_least, finish, print_table
from benchmarks.gpu_bench import LOST, SAVED, Bench, connect
from kernels.backends.cuda_device import DeviceLost
from kernels.errors import KernelsError

NO_GPU = 3
"""Exit status when there is no GPU to measure."""
RESULTS = "BITWRIGHT_RESULTS"
DEADLINE_S = 525.0
SANITIZER = "compute-sanitizer"
MOST_STARTS = 8
"""Processes of one section; each costs some seconds to import torch and to open the device."""
LEAST_S = 5.0


@dataclass(frozen=True)
class Section:
    """A named part with the most seconds it may take; `under` is a program that runs it."""

    name: str
    limit_s: float
    under: tuple[str, ...] = ()


SECTIONS = (
    Section("exactness", 150.0),
    Section("speed", 90.0),
    Section("resnet50", 150.0),
    Section("encoder", 90.0),
    Section("sanitizer", 45.0, (SANITIZER, "--error-exitcode", "77")),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="every section with a fake device, in small")
    parser.add_argument("--only", default="", help="sections whose name contains this text")
    parser.add_argument("--section", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.section:
        return run_section(options.section, options.folder, options.dry_run)
    folder = Path(os.environ.get(RESULTS, "gpu-results"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        identity = str(connect(options.dry_run).device.identity)
    except KernelsError as error:
        print(f"nothing to measure: {error}")
        return NO_GPU
    print(f"device: {identity}", file=sys.stderr)
    began = time.monotonic()
    sections = [section for section in SECTIONS if options.only in section.name]
    avoid: list[str] = []
    results: list[dict[str, Any]] = []
    for section in sections:
        results.append(_run(section, folder, began, options.dry_run, avoid))
        document = {"device": identity, "dry_run": options.dry_run, "sections": results}
        (folder / "results.json").write_text(json.dumps(document, indent=1))
    bars = [Bar(**bar) for result in results for bar in result.get("bars", ())]
    finished = sum(result["status"] in ("done", "not installed") for result in results)
    bars.append(at_least("sections finished", float(finished), "sections", float(len(results))))
    seconds = time.monotonic() - began
    document = {"device": identity, "dry_run": options.dry_run, "seconds": seconds, "sections": results}
    (folder / "results.json").write_text(json.dumps(document, indent=1))
    rows = [(bar.name, bar.value, bar.unit, bar.goal, "yes" if bar.holds else "NO") for bar in bars]
    print_table(("bar", "value", "unit", "goal", "holds"), rows)
    for result in results:
        print(
            f"{result['section']}: {result['status']} in {result['seconds']:.0f} s {result.get('reason', '')}".rstrip()
        )
    status = finish("gpu", bars, device=identity, dry_run=options.dry_run)
    return int(finished < len(results)) if options.dry_run else status  # a fake device's times keep no promise


def _run(section: Section, folder: Path, began: float, dry_run: bool, avoid: list[str]) -> dict[str, Any]:
    """One section in processes of its own; whatever becomes of it is an entry of the results.

    `avoid` are kernels that took the device along before; those of this section are added.
    """
    if section.under and shutil.which(section.under[0]) is None:
        return _ended(section, "not installed", 0.0, f"{section.under[0]} is not on PATH")
    command = [*section.under, sys.executable, "-m", "benchmarks.gpu", "--section", section.name, "--folder"]
    start = time.monotonic()
    end = min(start + section.limit_s, began + DEADLINE_S)
    status, reason = "skipped", "no time was left"
    with tempfile.TemporaryDirectory() as scratch, (folder / "gpu.log").open("a") as log:
        saved = Path(scratch) / SAVED
        saved.write_text(json.dumps({"avoid": avoid}))
        for number in range(MOST_STARTS):
            left = end - time.monotonic()
            if left < LEAST_S and section.limit_s >= LEAST_S:
                reason = f"{reason}; no time was left to go on" if number else reason
                break
            log.write(f"\n=== {section.name}, start {number + 1}\n")
            log.flush()
            environment = {**os.environ, "BITWRIGHT_SECTION_S": str(0.9 * left)}
            try:
                code = subprocess.run(
                    [*command, scratch, *(["--dry-run"] if dry_run else [])],
                    stdout=log, stderr=log, timeout=left, check=False, env=environment,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                status, reason = "timed out", f"after {section.limit_s:.0f} s"
                break
            status, reason = ("done", "") if code == 0 else ("failed", f"exit status {code}")
            if code != LOST and not (code < 0 and _died(saved, code)):
                break
        seconds = time.monotonic() - start
        for table in Path(scratch).glob("latency_table_*.json"):
            shutil.copyfile(table, folder / table.name)
        kept = json.loads(saved.read_text())
    avoid[:] = list(dict.fromkeys([*avoid, *kept.get("avoid", ())]))
    print(f"{section.name}: {status} in {seconds:.0f} s {reason}", file=sys.stderr)
    return {**kept, **_ended(section, status, seconds, reason or kept.get("reason", ""))}


def _died(saved: Path, code: int) -> bool:
    """Record a process that a signal ended; False when it had not begun any part, for then it would die again."""
    document = json.loads(saved.read_text())
    if not document.get("doing"):
        return False
    bench = Bench(None, is_dry=True, folder=saved.parent)  # type: ignore[arg-type]  # only its records are touched
    bench.resume(document)
    bench.lost(f"the process ended with signal {-code}")
    return True


def _ended(section: Section, status: str, seconds: float, reason: str) -> dict[str, Any]:
    return {"section": section.name, "status": status, "seconds": seconds, "reason": reason}


def run_section(name: str, folder: Path, dry_run: bool) -> int:
    """The child's side: run a section, writing what it has after every step."""
    from benchmarks import gpu_exactness, gpu_speed, gpu_validation

    work: dict[str, Callable[[Bench], None]] = {
        "exactness": gpu_exactness.exactness,
        "sanitizer": gpu_exactness.few_of_each,
        "speed": gpu_speed.speed,
        "resnet50": gpu_validation.validate_resnet50,
        "encoder": gpu_validation.validate_encoder,
    }
    bench = connect(dry_run)
    bench.folder = folder
    bench.seconds = float(os.environ.get("BITWRIGHT_SECTION_S", "60"))
    if (folder / SAVED).exists():
        bench.resume(json.loads((folder / SAVED).read_text()))
    try:
        work[name](bench)
    except DeviceLost:
        bench.lost(traceback.format_exc())
        return LOST
    except Exception as error:
        bench.failures["section"] = traceback.format_exc()
        print(bench.failures["section"], file=sys.stderr)
        bench.note("reason", f"{getattr(error, 'code', type(error).__name__)}: {error}")
    if bench.failures:
        bench.notes.setdefault("reason", f"failed: {', '.join(bench.failures)}")
    bench.save()
    return int(bool(bench.failures))


if __name__ == "__main__":
    sys.exit(main())
