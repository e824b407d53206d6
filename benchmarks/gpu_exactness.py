"""Exactness: every kernel on random shapes, integer-valued inputs, poisoned outputs, every output compared.

Integer results must be equal. The weight-only kernel sums in float: its bound is stated with it. A kernel that is exact
on all its shapes may be called verified on this architecture. Products and convolutions come twice: as layers leave
them, and with every part that an epilogue can have (scales of rows, bias, residual, ReLU, zero points, either
requantization) there or not by chance, to the bit. So do quantize, dequantize and requantize.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from benchmarks.bars import at_least
from benchmarks.gpu_bench import Bench
from benchmarks.gpu_epilogues import BOUNDARIES, boundary, epilogues, exact_sums
from benchmarks.gpu_shapes import Case, Kernels, Wanted, count, draw, draw_launch
from kernels.backends.cuda_device import DeviceLost
from kernels.backends.cuda_kernels import OurKernels
from kernels.cuda.epilogue import Output
from kernels.errors import KernelsError
from kernels.random_layer import RandomLayer
from kernels.spot_check import Sample, sample

SHAPES = 200
ALL = 1 << 30
SLACK_S = 15.0
"""A case stops by itself when its share is over; past this much more, a kernel hangs."""
CASES = (
    ("linear", "w8a8", Output.S32),
    ("linear", "w4a8", Output.S32),
    ("linear", "w4a4", Output.S32),
    ("linear", "w4a16", Output.F16),
    ("conv2d", "w8a8", Output.S8),
    ("conv2d", "w4a8", Output.S8),
    ("conv2d", "w4a4", Output.S8),
    ("depthwise", "w8a8", Output.S8),
)

EPILOGUES = tuple((kind, precision) for kind, precision, _ in CASES)


def exactness(bench: Bench) -> None:
    """All cases, each with its share of the time; one bar a case: shapes that were exact."""
    found = cases(bench)
    shares = sum(case.share for case in found.values())
    for name, case in found.items():
        seconds = bench.left_s * case.share / shares
        shares -= case.share
        wanted = 4 if bench.is_dry else case.shapes

        def compare(name: str = name, case: Case = case, wanted: int = wanted, seconds: float = seconds) -> None:
            right, wrong, kernels = check(bench, name, case, wanted, seconds)
            bench.note(f"exact {name}: kernels", kernels)
            bench.note(f"exact {name}: wrong", wrong[:20])
            bench.bar(at_least(f"exact {name}", float(right), "shapes", float(wanted)))

        bench.part(name, compare, seconds + SLACK_S)


def few_of_each(bench: Bench) -> None:
    """A few shapes of every kernel, for a memory checker that makes each launch many times slower."""
    found = cases(bench)
    seconds = bench.left_s / len(found)
    for name, case in found.items():

        def look(name: str = name, case: Case = case) -> None:
            right, wrong, _ = check(bench, name, case, 3, seconds)
            bench.bar(at_least(f"checked {name}", 0.0 if wrong else float(right), "shapes", 1.0))

        bench.part(name, look, seconds + SLACK_S)


def cases(bench: Bench) -> dict[str, Case]:
    """Every case by name."""
    found = {f"{kind} {precision}": _layers(bench, kind, precision, output) for kind, precision, output in CASES}
    found |= {f"{kind} {precision} epilogues": epilogues(bench, kind, precision) for kind, precision in EPILOGUES}
    return found | {name: boundary(bench, name) for name in BOUNDARIES}


def check(bench: Bench, name: str, case: Case, wanted: int, seconds: float) -> tuple[int, list[str], dict[str, int]]:
    """(shapes that were exact, sentences on those that were not, launches by kernel and tile).

    Goes on where an earlier process of the section was lost, with the next shape and without the kernel that did it.
    """
    stop = bench.left_s - seconds
    kept = bench.progress.setdefault(name, {"next": 0, "right": 0, "wrong": [], "kernels": {}})
    _compile(bench, case, range(kept["next"], wanted))
    for seed in range(kept["next"], wanted):
        if bench.left_s < stop:
            kept["wrong"].append(f"stopped after {seed} shapes: no time was left")
            break
        kept["next"] = seed + 1
        try:
            case.attempt(seed, kept["kernels"])
            kept["right"] += 1
        except DeviceLost as error:
            kept["wrong"].append(f"shape {seed}: {error.message}")
            raise
        except Exception as error:  # the next shape may tell what is different about it
            kept["wrong"].append(f"shape {seed}: {getattr(error, 'message', repr(error))}")
    return kept["right"], kept["wrong"], kept["kernels"]


def _compile(bench: Bench, case: Case, seeds: range) -> None:
    """Have the kernels of all shapes ready; one that cannot be named is met again by its shape."""
    wanted: dict[str, Wanted] = {}
    for seed in seeds:
        with suppress(KernelsError):
            source, tile, defines = case.wants(seed)
            wanted[f"{source.name} {tile} {sorted(defines.items())}"] = source, tile, defines
    bench.device.compile_ahead([*wanted.values()])


def _layers(bench: Bench, kind: str, precision: str, output: Output) -> Case:
    """Whole layers as `OurKernels` runs them, in one of all their tiles."""

    def wants(seed: int) -> Wanted:
        launch = draw_launch(bench, draw(bench.device, kind, precision, seed), output)
        return launch.source, launch.tile, launch.defines

    def attempt(seed: int, kernels: Kernels) -> None:
        drawn = draw(bench.device, kind, precision, seed)
        launch = draw_launch(bench, drawn, output)
        layer = drawn.layer()
        contender = OurKernels(bench.device, output, only=launch.name)
        prepared = contender.prepare(layer, 1, 1)
        kernel = count(kernels, launch.name)
        with bench.running(kernel):
            expected = sums(layer) if output is Output.S32 else sample(layer, rows=ALL, columns=ALL)
            prepared.check(launch.name, expected)

    return Case(attempt, wants, SHAPES, share=3.0)


def sums(layer: RandomLayer) -> Sample:
    """Every accumulator of a matrix product with its bias: integers, whatever the scales."""
    found = exact_sums(layer)
    found = found if layer.bias_codes is None else found + layer.bias_codes
    return Sample(np.arange(found.shape[0]), np.arange(found.shape[1]), found)
