"""Exactness: every kernel on random shapes, integer-valued inputs, poisoned outputs, every output compared.

Integer results must be equal. The weight-only kernel sums in float: its bound is stated with it. A kernel that is exact
on all its shapes may be called verified on this architecture.
"""

from __future__ import annotations

import numpy as np

from benchmarks.bars import at_least
from benchmarks.gpu_bench import Bench
from kernels import reference
from kernels.backends.cuda_device import DeviceLost
from kernels.backends.cuda_kernels import OurKernels
from kernels.cuda.capability import nearest_listed
from kernels.cuda.epilogue import Output
from kernels.op_shape import Conv2dShape, LinearShape, OpShape
from kernels.precision import Precision
from kernels.profiles.cuda import cuda_profile
from kernels.random_layer import RandomLayer, random_layer
from kernels.spot_check import Sample, sample

SHAPES = 200
ALL = 1 << 30
SLACK_S = 15.0
"""A case stops by itself when its share is over; past this much more, a kernel hangs."""
CASES = (
    ("linear", "w8a8", Output.S32),
    ("linear", "w4a8", Output.S32),
    ("linear", "w4a4", Output.S32),
    ("linear", "w4a16-g128", Output.F16),
    ("conv2d", "w8a8", Output.S8),
    ("conv2d", "w4a8", Output.S8),
    ("conv2d", "w4a4", Output.S8),
    ("depthwise", "w8a8", Output.S8),
)


def exactness(bench: Bench) -> None:
    """All cases, each with its share of the time; one bar a case: shapes that were exact."""
    wanted = 4 if bench.is_dry else SHAPES
    for index, case in enumerate(CASES):
        share = bench.left_s / (len(CASES) - index)

        def compare(case: tuple[str, str, Output] = case, share: float = share) -> None:
            name = f"exact {case[0]} {case[1]}"
            right, wrong, kernels = check_case(bench, *case, wanted, share)
            bench.note(f"{name}: kernels", kernels)
            bench.note(f"{name}: wrong", wrong[:20])
            bench.bar(at_least(name, float(right), "shapes", float(wanted)))

        bench.part(" ".join(case[:2]), compare, share + SLACK_S)


def few_of_each(bench: Bench) -> None:
    """A few shapes of every kernel, for a memory checker that makes each launch many times slower."""
    share = bench.left_s / len(CASES)
    for case in CASES:

        def compare(case: tuple[str, str, Output] = case) -> None:
            right, wrong, _ = check_case(bench, *case, 3, share)
            bench.bar(at_least(f"checked {case[0]} {case[1]}", 0.0 if wrong else float(right), "shapes", 1.0))

        bench.part(" ".join(case[:2]), compare, share + SLACK_S)


def check_case(
    bench: Bench, kind: str, precision_name: str, output: Output, wanted: int, seconds: float
) -> tuple[int, list[str], dict[str, int]]:
    """(shapes that were exact, sentences on those that were not, launches by kernel and tile).

    Goes on where an earlier process of the section was lost, with the next shape and without the kernel that did it.
    """
    precision = Precision(precision_name)
    profile = cuda_profile("check", bench.device.identity, nearest_listed(bench.device.arch) or bench.device.arch)
    stop = bench.left_s - seconds
    kept = bench.progress.setdefault(f"{kind} {precision_name}", {"next": 0, "right": 0, "wrong": [], "kernels": {}})
    for seed in range(kept["next"], wanted):
        if bench.left_s < stop:
            kept["wrong"].append(f"stopped after {seed} shapes: no time was left")
            break
        kept["next"] = seed + 1
        rng = np.random.default_rng([seed, *f"{kind} {precision_name}".encode()])
        op = random_op(kind, rng)
        layer = random_layer(op, precision, profile.recipe(op.kind, precision), seed)
        contender = OurKernels(
            bench.device, output if kind == "linear" else None, int(rng.integers(1 << 16)), avoid=bench.avoid
        )
        try:
            prepared = contender.prepare(layer, 1, 1)
            (variant,) = prepared.variants
            kernel = variant.split(" /")[0]
            kept["kernels"][kernel] = kept["kernels"].get(kernel, 0) + 1
            with bench.running(kernel):
                prepared.check(variant, sums(layer) if output is Output.S32 else sample(layer, rows=ALL, columns=ALL))
            kept["right"] += 1
        except DeviceLost as error:
            kept["wrong"].append(f"{op.signature}: {error.message}")
            raise
        except Exception as error:  # the next shape may tell what is different about it
            kept["wrong"].append(f"{op.signature}: {getattr(error, 'message', repr(error))}")
    return kept["right"], kept["wrong"], kept["kernels"]


def sums(layer: RandomLayer) -> Sample:
    """Every accumulator of a matrix product with its bias: integers, whatever the scales."""
    found = reference.linear(layer.input.astype(np.int64), layer.weight.astype(np.int64))
    found = found if layer.bias_codes is None else found + layer.bias_codes
    return Sample(np.arange(found.shape[0]), np.arange(found.shape[1]), found)


def random_op(kind: str, rng: np.random.Generator) -> OpShape:
    """A shape that divides nothing in particular; one in four is a multiple of everything."""

    def draw(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    if kind == "linear":
        if rng.random() < 0.25:
            return LinearShape(16 * draw(1, 16), 128 * draw(1, 8), 64 * draw(1, 8), bool(draw(0, 1)))
        return LinearShape(draw(1, 300), draw(1, 1200), draw(1, 400), bool(draw(0, 1)))
    while True:
        groups = draw(1, 4) if rng.random() < 0.3 else 1
        channels, out = groups * draw(1, 48), groups * draw(1, 64)
        if kind == "depthwise":
            groups = channels = draw(2, 96)
            out = groups * (2 if rng.random() < 0.2 else 1)
        op = Conv2dShape(
            draw(1, 3), channels, draw(1, 14), draw(1, 14), out, (draw(1, 5), draw(1, 5)), (draw(1, 3), draw(1, 3)),
            (draw(0, 3), draw(0, 3), draw(0, 3), draw(0, 3)), (draw(1, 2), draw(1, 2)), groups, bool(draw(0, 1)),
        )  # fmt: skip
        if min(op.out_size) >= 1:
            return op
