"""Running a convolution plan with the real kernels on the emulated device."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.conv import ConvPlan, plan_convolution
from kernels.cuda.epilogue import EpilogueArguments, Output
from kernels.precision import Precision
from tests.kernels.cuda.conv_cases import ConvCase
from tests.kernels.cuda.simt.emulator import GuardedArray, Memory, emulate

Array = np.ndarray[Any, Any]
FEW, MANY = 1, 64
"""Multiprocessors of the imagined device: with few there is one slice of K, with many the sums come in several."""


def small_plan(
    case: ConvCase, precision: str, arch: str = "sm_80", cores: int = MANY, ld_x: int | None = None
) -> ConvPlan:
    """A plan in the smallest tile of its alignment, which the CPU emulates fastest."""
    smallest = plan_convolution(case.op, Precision(precision), arch, 1 << 20, ld_x).tile
    return plan_convolution(case.op, Precision(precision), arch, cores, ld_x, smallest)


class Run:
    """One plan's buffers on the emulated device."""

    def __init__(self, plan: ConvPlan, case: ConvCase, output: Output) -> None:
        self.plan, self.case, self.output = plan, case, output
        self.memory = Memory()
        self.x = self.memory.upload(plan.pack_input(case.x), "x")
        self.w = self.memory.upload(plan.pack_weights(case.w), "w")
        rows = case.op.batch * case.op.out_size[0] * case.op.out_size[1]
        kind = np.int8 if output is Output.S8 else np.int32
        self.out = self.memory.empty((rows, case.op.out_channels), kind, "out")

    def upload(self, values: Array, name: str) -> GuardedArray:
        return self.memory.upload(values, name)

    def launch(self, epilogue: EpilogueArguments, arch: str = "sm_80", seed: int = 0) -> Array:
        """The output of one launch; counters and sums between blocks must be left as they were, zero."""
        plan = self.plan
        between: list[GuardedArray] = []
        if plan.slices > 1:
            between = [
                self.upload(np.zeros(plan.partial_bytes, np.uint8), "partial"),
                self.upload(np.zeros(plan.arrivals, np.uint32), "arrivals"),
            ]
        epilogue.out, epilogue.ld_out = self.out.address, self.case.op.out_channels
        arguments = plan.arguments(self.x.address, self.w.address, *(held.address for held in between))
        kernel = emulate(plan.source, arch, plan.tile, {"OUTPUT": int(self.output), **plan.defines})
        kernel.launch(
            self.memory, plan.grid, (plan.threads,), [arguments, epilogue], shared_bytes=plan.shared_bytes, seed=seed
        )
        assert not any(held.array.any() for held in between), "a replayed graph must find zeroes"
        return self.out.array


def sums_of(plan: ConvPlan, case: ConvCase, arch: str = "sm_80", seed: int = 0) -> Array:
    """The kernel's accumulators; a bias is added and taken off again."""
    run = Run(plan, case, Output.S32)
    bias = np.random.default_rng(seed).integers(-1000, 1000, case.op.out_channels).astype(np.int32)
    out = run.launch(EpilogueArguments(bias=run.upload(bias, "bias").address), arch, seed)
    return out.astype(np.int64) - bias
