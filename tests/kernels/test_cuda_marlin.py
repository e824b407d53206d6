"""Marlin as a contender, against a stand-in for its package that keeps the published contract of `Layer` and `mul`."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels.backends import cuda_marlin
from kernels.backends.cuda import Cuda
from kernels.backends.cuda_device import WrongResult
from kernels.backends.cuda_fake import FakeCudaDevice
from kernels.backends.cuda_marlin import Marlin
from kernels.op_shape import Conv2dShape, LinearShape
from kernels.precision import Precision
from kernels.profiles.cuda import cuda_profile
from kernels.random_layer import random_layer
from kernels.recipes import linear_groups_float
from kernels.spot_check import sample

W4A16 = Precision("w4a16-g128")
OP = LinearShape(5, 384, 256)


class Layer(torch.nn.Module):
    """Codes 0 to 15 of half-precision weights over half-precision scales (N, groups), 8 meaning zero."""

    def __init__(self, infeatures: int, outfeatures: int, groupsize: int) -> None:
        assert (infeatures % 128, outfeatures % 256, groupsize) == (0, 0, 128)
        super().__init__()
        self.register_buffer("B", torch.empty((infeatures, outfeatures), dtype=torch.int))
        self.register_buffer("s", torch.empty((infeatures // groupsize, outfeatures), dtype=torch.half))
        self.register_buffer("workspace", torch.zeros(outfeatures // 128 * 8, dtype=torch.int))

    def pack(self, linear: torch.nn.Linear, scales: torch.Tensor) -> None:
        assert linear.weight.dtype == scales.dtype == torch.half
        self.s.copy_(scales.t())
        spread = self.s.float().repeat_interleave(128, dim=0)
        self.B.copy_(torch.clamp(torch.round(linear.weight.data.t().float() / spread) + 8, 0, 15))


def mul(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, s: torch.Tensor, workspace: torch.Tensor) -> None:
    assert a.dtype == c.dtype == torch.half
    assert not workspace.any()
    c.copy_(a.float() @ ((b - 8) * s.float().repeat_interleave(128, dim=0)))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = SimpleNamespace(Layer=Layer, mul=mul)
    monkeypatch.setattr(cuda_marlin, "_package", lambda: found)
    return found


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_right_and_copies_its_weights(package: Any, bias: bool) -> None:
    layer = random_layer(replace(OP, bias=bias), W4A16, linear_groups_float(128), 3)
    prepared = Marlin(FakeCudaDevice()).prepare(layer, 3, 2)
    prepared.check("", sample(layer))
    first = prepared.enqueue("", 0, 0)
    torch.testing.assert_close(prepared.enqueue("", 2, 1), first, rtol=0, atol=0)


def test_a_wrong_product_is_found(package: Any) -> None:
    package.mul = lambda a, b, c, s, workspace: mul(a, b + 1, c, s, workspace)
    layer = random_layer(OP, W4A16, linear_groups_float(128), 3)
    with pytest.raises(WrongResult, match="sampled outputs are off"):
        Marlin(FakeCudaDevice()).prepare(layer, 1, 1).check("", sample(layer))


def test_it_says_what_it_cannot_run(package: Any) -> None:
    marlin = Marlin(FakeCudaDevice())
    assert marlin.why_not(OP, W4A16) is None
    assert "groups of 128" in str(marlin.why_not(OP, Precision("w4a16-g32")))
    assert "divisible" in str(marlin.why_not(replace(OP, n=264), W4A16))
    assert "4-bit" in str(marlin.why_not(OP, Precision("w8a8")))
    assert "4-bit" in str(marlin.why_not(Conv2dShape(1, 8, 4, 4, 8, (1, 1)), W4A16))
    assert "sm_80" in str(Marlin(FakeCudaDevice(arch="sm_75")).why_not(OP, W4A16))


def test_where_it_is_absent_the_run_says_so() -> None:
    device = FakeCudaDevice()
    marlin = Marlin(device)
    assert marlin.why_not(OP, W4A16) == marlin.missing == "the package marlin is not installed"
    backend = Cuda(cuda_profile("cuda-local", device.identity, device.arch), device, [marlin])
    assert backend.circumstances()["missing"] == {"marlin": "the package marlin is not installed"}
