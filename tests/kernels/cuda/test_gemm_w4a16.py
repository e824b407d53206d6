"""The weight-only kernel itself, run on the CPU: exact where floats are exact, bounded elsewhere, on any shape."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import reference
from kernels.cuda import packing, weight_only
from kernels.cuda.epilogue import EpilogueArguments, Output
from kernels.cuda.source import KernelSource
from kernels.errors import KernelsError
from tests.kernels.cuda.simt.emulator import Memory, emulate

F16, BF16 = weight_only.GEMM_W4A16, weight_only.GEMM_W4A16_BF16


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits of values that bfloat16 holds exactly."""
    bits = values.astype(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


class Layer:
    """A random layer: integer activations, 4-bit codes, scales that are powers of two unless `exact` is off."""

    def __init__(
        self, m: int, n: int, k: int, group: int | None, *, asymmetric: bool = False, seed: int = 0, exact: bool = True
    ) -> None:
        rng = np.random.default_rng(seed)
        groups = 1 if group is None else -(-k // group)
        self.x = rng.integers(-15, 16, (m, k)).astype(np.float32)
        self.codes = rng.integers(0, 16, (n, k)) if asymmetric else rng.integers(-8, 8, (n, k))
        self.zeros = rng.integers(0, 16, (groups, n)) if asymmetric else None
        scale = 2.0 ** rng.integers(-3, 1, (groups, n)) if exact else rng.uniform(1e-3, 1e-2, (groups, n))
        self.weights = packing.pack_fragments(self.codes, scale, group, self.zeros)
        width = group or k
        shift = 0 if self.zeros is None else np.repeat(self.zeros, width, axis=0)[:k]
        self.values = (self.codes.T - shift) * np.repeat(self.weights.scales(), width, axis=0)[:k]

    def run(
        self, *, tile: str = "16x64", source: KernelSource = F16, arch: str = "sm_80", slices: int = 1, align: int = 16,
        output: Output = Output.F32, seed: int = 0, **epilogue: object,
    ) -> np.ndarray:  # fmt: skip
        (m, k), n, device = self.x.shape, self.codes.shape[0], Memory()
        weights = self.weights
        plan = weight_only.plan_weight_only(
            source, m, n, k, tile=tile, group_size=weights.group_size, zero_points=self.zeros is not None,
            slices=slices, output=output, align_a=align,
        )  # fmt: skip
        ld = -(-2 * k // align) * align if align > 1 else 2 * k
        bits = to_bfloat16(self.x) if source is BF16 else self.x.astype(np.float16).view(np.uint16)
        x = device.empty((m, ld // 2), np.uint16, "activations")
        x.array[:, :k] = bits  # what lies behind a row is poison and must not count
        parts = weight_only.FragmentsArguments(words=device.upload(weights.words, "words").address)
        if weights.ratios is not None:
            parts.ratios = device.upload(weights.ratios, "ratios").address
        if weights.zero_points is not None:
            parts.zero_points = device.upload(weights.zero_points, "zero points").address
        out = device.empty((m, n), {Output.F32: np.float32, Output.F16: np.float16}.get(output, np.uint16), "out")
        held = {
            name: device.upload(value, name).address if isinstance(value, np.ndarray) else value
            for name, value in {"scale": weights.channel_scale, **epilogue}.items()
        }
        partial = device.empty((plan.partial_bytes,), np.uint8, "partial") if slices > 1 else None
        arrivals = device.upload(np.zeros(plan.arrivals, np.uint32), "arrivals") if slices > 1 else None
        statistics = emulate(source, arch, tile, plan.defines).launch(
            device, plan.grid, (plan.threads,),
            [x, parts, EpilogueArguments(out=out.address, ld_out=n, ld_residual=n, **held),
             np.int32(m), np.int32(n), np.int32(k), np.int32(ld), partial, arrivals],
            shared_bytes=plan.shared_bytes, seed=seed,
        )  # fmt: skip
        assert statistics.ldmatrix_conflicts == 0
        assert arrivals is None or not arrivals.array.any()
        return out.array

    @property
    def exact(self) -> np.ndarray:
        return reference.linear(self.x.astype(np.float64), self.values)


def test_exact_on_shapes_that_divide_nothing() -> None:
    rng = np.random.default_rng(1)
    shapes = [tuple(int(v) | 1 for v in rng.integers(1, (40, 150, 700))) for _ in range(20)]
    for i, (m, n, k) in enumerate([*shapes, (1, 1, 1), (16, 64, 512)]):
        layer = Layer(m, n, k, 128, seed=i)
        assert np.array_equal(layer.run(align=1 if k % 2 else 4, seed=i), layer.exact), (m, n, k)


@pytest.mark.parametrize("tile", [name for name in weight_only.TILES if name != "16x64"])
def test_every_tile_with_split_k(tile: str) -> None:
    for m, n, k, slices in [(9, 150, 1150, 3), (70, 130, 64, 2)]:
        layer = Layer(m, n, k, 128)
        assert np.array_equal(layer.run(tile=tile, slices=slices, align=4), layer.exact)


@pytest.mark.parametrize(
    ("group", "asymmetric", "tile"),
    [(None, False, "16x64"), (None, True, "32x128"), (16, False, "16x64"), (16, True, "8x64"), (32, True, "16x64"),
     (64, True, "16x64"), (256, False, "64x128"), (256, True, "64x128")],
)  # fmt: skip
def test_groups_and_zero_points(group: int | None, asymmetric: bool, tile: str) -> None:
    layer = Layer(11, 90, 600, group, asymmetric=asymmetric, seed=3)
    assert np.array_equal(layer.run(tile=tile), layer.exact)


@pytest.mark.parametrize(("source", "arch"), [(BF16, "sm_80"), (F16, "sm_75")], ids=["bfloat16", "turing"])
def test_bfloat16_and_turing_give_the_same(source: KernelSource, arch: str) -> None:
    layer = Layer(7, 70, 330, 64, asymmetric=True, seed=4)
    assert np.array_equal(layer.run(source=source, arch=arch, tile="8x64"), layer.exact)


def test_bias_residual_relu_and_half_precision_output() -> None:
    layer = Layer(5, 40, 128, 64, seed=5)
    rng = np.random.default_rng(5)
    offset, residual = rng.integers(-9, 9, 40).astype(np.float32), rng.integers(-9, 9, (5, 40)).astype(np.float16)
    expected = np.maximum(layer.exact + offset + residual, 0).astype(np.float16)
    assert np.array_equal(layer.run(output=Output.F16, offset=offset, residual=residual, relu=1), expected)


def test_any_scales_stay_within_the_bound_of_float_sums() -> None:
    layer = Layer(6, 33, 640, 32, seed=6, exact=False)
    found = layer.run()
    terms = np.abs(layer.x).astype(np.float64) @ np.abs(layer.values)
    # Sums within a group are exact integers; then 20 groups, 4 warps, the channel scale.
    assert (np.abs(found - layer.exact) <= 26 * 2.0**-24 * terms).all()


def test_plans_and_suggestions() -> None:
    with pytest.raises(KernelsError) as caught:
        weight_only.plan_weight_only(F16, 1, 64, 64, group_size=48)
    assert caught.value.code == "bad_group_size"
    assert [weight_only.suggest_tile(m) for m in (1, 9, 17, 33, 4096)] == [
        "8x64",
        "16x64",
        "32x128",
        "64x128",
        "64x128",
    ]
    assert weight_only.suggest_slices(4096, 4096, 132, "8x64") == 4
    assert weight_only.suggest_slices(32768, 4096, 132, "8x64") == 1
