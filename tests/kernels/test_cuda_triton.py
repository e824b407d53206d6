"""Triton's products: what the host decides everywhere, and the kernels themselves where triton is installed.

The kernels run on the CPU by Triton's own interpreter, and are compiled for GPUs that are not here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from kernels import recipes
from kernels.backends import cuda_bind, cuda_triton
from kernels.backends.cuda import Cuda
from kernels.backends.cuda_bind import bind
from kernels.backends.cuda_fake import FakeCudaDevice
from kernels.backends.cuda_opponents import IntMm, opponents
from kernels.backends.cuda_product import ProductContender
from kernels.backends.cuda_triton import INT8_TILES, Triton, fitting, pack_halves, step_of
from kernels.cuda.launch import Reads
from kernels.errors import NotMeasured
from kernels.op_shape import LinearShape, parse_op_shape
from kernels.precision import Precision
from kernels.profiles.cuda import cuda_profile
from kernels.random_layer import RandomLayer, random_layer
from kernels.spot_check import sample

W8A8, GROUPS = Precision("w8a8"), Precision("w4a16-g128")
SHAPES = (LinearShape(1, 64, 16), LinearShape(5, 70, 33, False), LinearShape(37, 300, 70), LinearShape(130, 256, 130))


def layer_of(op: LinearShape, precision: str) -> RandomLayer:
    device, wanted = FakeCudaDevice(), Precision(precision)
    profile = cuda_profile("test", device.identity, device.arch)
    groups = wanted.group_size
    recipe = profile.recipe("linear", wanted) if groups is None else recipes.linear_groups_float(groups)
    return random_layer(op, wanted, recipe, 3)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's kernels as Python; they are imported anew, because the flag is read when they are defined."""
    pytest.importorskip("triton", reason="triton is not installed: it comes with a torch built for CUDA")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, "kernels.backends.triton_kernels", raising=False)
    cuda_triton._missing.cache_clear()
    yield
    sys.modules.pop("kernels.backends.triton_kernels", None)
    cuda_triton._missing.cache_clear()


@pytest.mark.parametrize("precision", ["w8a8", "w4a16-g128", "w4a16-g32"])
@pytest.mark.parametrize("op", SHAPES, ids=lambda op: op.signature)
def test_every_tile_computes_what_the_reference_says(interpreted: None, op: LinearShape, precision: str) -> None:
    layer = layer_of(op, precision)
    prepared = Triton(FakeCudaDevice()).prepare(layer, 1, 1)
    assert prepared.variants
    for variant in prepared.variants:
        prepared.check(variant, sample(layer))


@pytest.mark.parametrize("arch", ["80", "90"])
def test_the_kernels_compile_for_tensor_cores(arch: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed: it comes with a torch built for CUDA")
    done = subprocess.run([sys.executable, "-c", COMPILE, arch], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["wgmma" if arch == "90" else "mma"] * 2


COMPILE = """
import os, sys
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.backends import triton_kernels
from kernels.backends.cuda_triton import INT4_TILES, INT8_TILES
sizes = {"out": "*fp16", "scale": "*fp32", "offset": "*fp32", "m": "i32", "n": "i32", "k": "i32"}
for name, tiles, more in (
    ("scaled_int8", INT8_TILES, {"x": "*i8", "w": "*i8"}), ("widened_int4", INT4_TILES, {"x": "*fp16", "w": "*u8"})
):
    kernel, tile, typed = getattr(triton_kernels, name), tiles["128x128"], {**sizes, **more}
    constants = {"HAS_OFFSET": True, "DIVIDES": True, "GROUP": 128, "STEP": 128, "GROUP_M": 8, **tile}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature = {key: typed.get(key, "constexpr") for key in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, key in enumerate(kernel.arg_names) if key in typed}
    made = compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", int(sys.argv[1]), 32),
        options={"num_warps": tile["num_warps"], "num_stages": tile["num_stages"]},
    )
    print("wgmma" if "wgmma.mma" in made.asm["ptx"] else "mma" if "mma.sync" in made.asm["ptx"] else "none")
"""


@pytest.mark.parametrize(("k", "step"), [(256, 128), (70, 32), (128, 64), (1, 128)])
def test_halves_of_a_step_unpack_exactly(k: int, step: int) -> None:
    codes = np.random.default_rng(k).integers(-8, 8, (k, 10)).astype(np.int8)
    packed = pack_halves(codes, step)
    assert packed.shape == (-(-k // step) * step // 2, 10)
    steps = packed.reshape(-1, step // 2, 10)
    unpacked = np.concatenate([steps & 15, steps >> 4], axis=1).reshape(-1, 10).astype(np.int16) - 8
    np.testing.assert_array_equal(unpacked[:k], codes)
    assert not unpacked[k:].any()


def test_a_step_never_crosses_a_group() -> None:
    assert [step_of(group) for group in (0, 32, 128, 1024)] == [128, 32, 128, 128]


def test_few_rows_get_flat_tiles_and_many_get_tall_ones() -> None:
    assert fitting(INT8_TILES, 1) == ("16x32",)
    assert fitting(INT8_TILES, 32) == ("32x64", "16x32")
    assert fitting(INT8_TILES, 4096) == ("128x256", "128x128", "64x64")


@pytest.mark.parametrize(
    ("op", "precision", "arch", "said"),
    [
        (LinearShape(1, 64, 64), "w4a8", "sm_90a", "matrix products"),
        (parse_op_shape("conv2d_n1_c8_h4_w4_o8_k1x1_s1x1_p0x0x0x0_d1x1_g1_b0"), "w8a8", "sm_90a", "matrix products"),
        (LinearShape(1, 1 << 18, 64), "w8a8", "sm_90a", "131071"),
        (LinearShape(1, 64, 64), "w4a16-g16", "sm_90a", "from 32"),
        (LinearShape(1, 96, 64), "w4a16-g48", "sm_90a", "powers of two"),
        (LinearShape(1, 64, 64), "w8a8", "sm_75", "sm_80"),
    ],
    ids=lambda value: str(getattr(value, "signature", value)),
)  # fmt: skip
def test_what_it_cannot_run_is_said(op: Any, precision: str, arch: str, said: str) -> None:
    assert said in str(Triton(FakeCudaDevice(arch=arch)).why_not(op, Precision(precision)))


def test_where_triton_is_absent_the_run_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> ModuleType:
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(cuda_triton, "_kernels", absent)
    cuda_triton._missing.cache_clear()
    device = FakeCudaDevice()
    backend = Cuda(cuda_profile("test", device.identity, device.arch), device, opponents(device))
    assert "triton cannot be used: ModuleNotFoundError" in backend.missing["triton"]
    assert backend.circumstances()["missing"] == backend.missing
    op = LinearShape(32, 64, 48)
    assert backend.timed(op, W8A8, 1, 0, "hot").executed_kernel == "torch._int_mm"
    monkeypatch.undo()
    cuda_triton._missing.cache_clear()


class Named(ProductContender):
    """Stands in for a library that is not installed: exact products in torch, in two variants."""

    name, tolerance = "library", 2e-3

    def why_not(self, op: Any, precision: Precision) -> str | None:
        return None if isinstance(op, LinearShape) else "products only"

    def reads(self, precision: Precision) -> Reads:
        return Reads.CODES

    def variants(self, op: LinearShape, precision: Precision) -> tuple[str, ...]:
        return ("8x8", "16x16")

    def product(self, layer: RandomLayer, copies: int) -> Any:
        return lambda variant, copy, x: torch.full((x.shape[0], layer.op.n), float(len(variant)))


def test_a_network_runs_the_library_and_variant_that_its_row_names(monkeypatch: pytest.MonkeyPatch) -> None:
    device, layer = FakeCudaDevice(), layer_of(LinearShape(3, 64, 8), "w8a8")
    monkeypatch.setattr(cuda_bind, "products", lambda device: [Named(device)])
    bound = bind(device, layer, ["gone", "library 16x16", "gemm_s8 16x64"])
    assert (bound.kernel, bound.leaves_codes) == ("library 16x16", False)
    assert bound.run(torch.zeros((3, 64), dtype=torch.int8), None).unique().tolist() == [5.0]
    with pytest.raises(NotMeasured):
        bind(device, layer, ["library 3x3"])


def test_products_are_the_same_from_every_copy_and_leave_halves() -> None:
    layer = layer_of(LinearShape(32, 128, 64), "w8a8")
    prepared = IntMm(FakeCudaDevice()).prepare(layer, 3, 2)
    made = [prepared.enqueue("", index, index % 2) for index in range(3)]
    assert all(torch.equal(made[0], each) and each.dtype == torch.float16 for each in made)
