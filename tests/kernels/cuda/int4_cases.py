"""A 4-bit matrix product run on the CPU: codes, buffers with guards, poisoned output, and the launch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels import reference
from kernels.cuda import int4, packing
from kernels.cuda.epilogue import EpilogueArguments, Output
from kernels.cuda.source import KernelSource
from tests.kernels.cuda.simt.emulator import Memory, emulate

TYPES = {Output.S32: np.int32, Output.F32: np.float32, Output.F16: np.float16, Output.S8: np.int8}


@dataclass(frozen=True)
class Problem:
    """Codes of one product and how to launch it."""

    source: KernelSource
    x: np.ndarray
    weight: np.ndarray

    @classmethod
    def random(cls, source: KernelSource, m: int, n: int, k: int, seed: int) -> Problem:
        rng = np.random.default_rng(seed)
        bits = 7 if source is int4.GEMM_W4A8 else 3
        x = rng.integers(-(1 << bits), 1 << bits, (m, k), dtype=np.int8)
        return cls(source, x, rng.integers(-8, 8, (n, k), dtype=np.int8))

    @property
    def sums(self) -> np.ndarray:
        return reference.linear(self.x.astype(np.int64), self.weight.T.astype(np.int64))

    def run(
        self,
        output: Output,
        epilogue: dict[str, np.ndarray | int | float],
        *,
        tile: str = "16x128",
        arch: str = "sm_80",
        slices: int = 1,
        scale: np.ndarray | None = None,
        group: int = 0,
        align: int = 16,
        zero_points: np.ndarray | None = None,
        unsigned: np.ndarray | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        m, k = self.x.shape
        n = self.weight.shape[0]
        device = Memory()
        plan = int4.plan_gemm(
            self.source, m, n, k, tile=tile, scale_group=group, slices=slices, output=output, align_a=align
        )
        if self.source is int4.GEMM_W4A8:
            ld = -(-k // align) * align
            x = device.empty((m, ld), np.int8, "activations")
            x.array[:, :k] = self.x  # what lies behind a row is poison and must not count
        else:
            x = device.upload(packing.pack_int4(self.x), "activations")
            ld = x.array.shape[1] * 4
        words = packing.pack_int4(self.weight) if unsigned is None else packing.pack_uint4(unsigned)
        weights = int4.Int4WeightsArguments(words=device.upload(words, "weights").address)
        fields = dict(epilogue)
        if scale is not None:
            ratios, fields["scale"] = int4.pack_ratios(scale)
            weights.ratios, weights.ld_ratios = device.upload(ratios, "ratios").address, ratios.shape[1]
        if zero_points is not None:
            weights.zero_points = device.upload(packing.signed_zero_points(zero_points), "zero points").address
            sums = self.x.sum(axis=1, dtype=np.int64).astype(np.int32)
            weights.row_sums = device.upload(sums, "row sums").address
        out = device.empty((m, n), TYPES[output], "out")
        held = {
            name: device.upload(value, name).address if isinstance(value, np.ndarray) else value
            for name, value in fields.items()
        }
        partial = device.empty((plan.partial_bytes,), np.uint8, "partial") if slices > 1 else None
        arrivals = device.upload(np.zeros(plan.arrivals, np.uint32), "arrivals") if slices > 1 else None
        emulate(self.source, arch, tile, plan.defines).launch(
            device, plan.grid, (plan.threads,),
            [x, weights, EpilogueArguments(out=out.address, ld_out=n, ld_residual=n, **held),
             np.int32(m), np.int32(n), np.int32(k), np.int32(ld), partial, arrivals],
            shared_bytes=plan.shared_bytes, seed=seed,
        )  # fmt: skip
        assert arrivals is None or not arrivals.array.any()
        return out.array
