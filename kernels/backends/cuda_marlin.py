"""Marlin as a contender where the package `marlin` is installed: fp16 activations by 4-bit weights, few rows.

Frantar et al., "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models", arXiv 2408.11743.
It is for groups of 128, K divisible by 128, N by 256, from sm_80 on, and not tuned for Hopper; the bias is an op of its
own. Scales are rounded to half precision, which its tolerance allows for.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import torch

from kernels.backends.cuda_contender import upload
from kernels.backends.cuda_product import Multiply, ProductContender
from kernels.cuda.launch import Reads
from kernels.op_shape import LinearShape, OpShape
from kernels.precision import Precision
from kernels.random_layer import RandomLayer

GROUP = 128
UNIT_K, UNIT_N = 128, 256


class Marlin(ProductContender):
    """`marlin.mul` on weights that `marlin.Layer.pack` laid out."""

    name = "marlin"
    tolerance = 4e-3

    @property
    def missing(self) -> str:
        return "" if _package() else "the package marlin is not installed"

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        if not isinstance(op, LinearShape) or not precision.is_weight_only or precision.weight_bits != 4:
            return "multiplies float by 4-bit matrices only"
        if self.device.arch == "sm_75":
            return "needs sm_80"
        if precision.group_size != GROUP or op.k % UNIT_K or op.n % UNIT_N:
            return f"needs groups of {GROUP}, K divisible by {UNIT_K} and N by {UNIT_N}"
        return self.missing or None

    def reads(self, precision: Precision) -> Reads:
        return Reads.HALVES

    def product(self, layer: RandomLayer, copies: int) -> Multiply:
        marlin: Any = _package()
        op = layer.op
        assert isinstance(op, LinearShape)
        assert layer.weight_scale is not None
        scale = layer.weight_scale.astype(np.float16)
        floats = layer.weight * np.repeat(scale.astype(np.float32), GROUP, axis=0)
        linear = torch.nn.Linear(op.k, op.n, bias=False, dtype=torch.float16, device=self.device.torch_device)
        linear.weight.data.copy_(upload(self.device, floats.T)[0])
        packed = marlin.Layer(op.k, op.n, GROUP).to(self.device.torch_device)
        packed.pack(linear, upload(self.device, scale.T)[0])
        weights = [packed.B, *(packed.B.clone() for _ in range(copies - 1))]
        bias = None if layer.bias is None else upload(self.device, layer.bias.astype(np.float16))[0]

        def multiply(variant: str, copy: int, x: torch.Tensor) -> torch.Tensor:
            out = torch.empty((x.shape[0], op.n), dtype=torch.float16, device=x.device)
            marlin.mul(x, weights[copy], out, packed.s, packed.workspace)
            return out if bias is None else out + bias

        return multiply


@lru_cache(maxsize=1)
def _package() -> ModuleType | None:
    """The package with its compiled part, or None."""
    try:
        return importlib.import_module("marlin")
    except (ImportError, OSError):  # absent, or built for another torch
        return None
