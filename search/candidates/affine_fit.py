"""Affine refit: per output channel, the factor and offset that bring a quantized output closest to the exact one."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

Vector = np.ndarray[Any, np.dtype[np.float64]]

# A channel whose spread is below this share of its power is constant up to float32 rounding.
_CONSTANT_SHARE = 1e-11
_RUN = 1024


@dataclass(frozen=True)
class AffineFit:
    """y ≈ factor * o + offset per channel, all shape (C,), and the squared error it leaves.

    `residual` is the sum of squared errors over samples; `total` the sum of squares of y around its mean.
    """

    factor: Vector
    offset: Vector
    residual: Vector
    total: Vector

    @property
    def unexplained(self) -> float:
        """The part of y's variance that is still wrong, summed over channels: 0 is exact."""
        total = float(self.total.sum())
        if total > 0:
            return float(self.residual.sum()) / total
        return 0.0 if float(self.residual.sum()) == 0 else 1.0


class Target:
    """One chunk of a layer's exact output, centred per channel once for all the outputs it is compared with."""

    def __init__(self, exact: Tensor, channel_axis: int) -> None:
        self._exact = _by_channel(exact, channel_axis)
        self._axis = channel_axis
        outer, _, inner = self._exact.shape
        self.count = outer * inner
        mean = _channel_sum(self._exact) / max(self.count, 1)
        self._centred = self._exact - mean.to(self._exact).reshape(1, -1, 1)
        # The mean was rounded to the tensor's type before it was taken off; account for what is left.
        rest = _channel_sum(self._centred) / max(self.count, 1)
        self.mean = mean.to(self._exact.dtype).double() + rest
        self._rest = rest
        self.spread = _channel_sum(self._centred.square()) - self.count * rest.square()

    def moments(self, quantized: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of the error d = quantized - exact, its squared spread, and its spread with the exact output."""
        error = _by_channel(quantized, self._axis) - self._exact
        mean = _channel_sum(error) / max(self.count, 1)
        products = _channel_sum(error * self._centred) - self.count * mean * self._rest
        return mean, _channel_sum(error.square_()) - self.count * mean.square(), products


class PairMoments:
    """Streamed second moments per channel of an exact output y and the error d = o - y of a quantized one.

    Keeping d instead of o costs no digits when o is nearly y: the residual of a fit is a sum of small terms, never
    a difference of large ones. Sums over a chunk are float32 in short runs, float64 beyond; chunks are merged by the
    pairwise update of Chan, Golub and LeVeque (1979), so that means far from zero do no harm either.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean_y, self.mean_d, self.yy, self.dd, self.dy = (torch.zeros(1, dtype=torch.float64) for _ in range(5))

    def add(self, exact: Tensor, quantized: Tensor, channel_axis: int) -> None:
        """One chunk of outputs of equal shape; every axis but `channel_axis` runs over samples."""
        self.add_to(Target(exact, channel_axis), quantized)

    def add_to(self, target: Target, quantized: Tensor) -> None:
        """The same for a target that several outputs are compared with."""
        if target.count == 0:
            return
        mean_d, dd, dy = target.moments(quantized)
        total = self.count + target.count
        gap_y, gap_d = target.mean - self.mean_y, mean_d - self.mean_d
        weight = self.count * target.count / total
        self.yy = self.yy + target.spread + gap_y * gap_y * weight
        self.dd = self.dd + dd + gap_d * gap_d * weight
        self.dy = self.dy + dy + gap_d * gap_y * weight
        self.mean_y = self.mean_y + gap_y * (target.count / total)
        self.mean_d = self.mean_d + gap_d * (target.count / total)
        self.count = total

    def fit(self) -> AffineFit:
        """The least-squares factor cov(o, y) / var(o) and offset mean(y) - factor * mean(o).

        A channel whose o is constant, or whose factor would not be positive, keeps factor 1 and gets only its mean
        corrected: a scale must stay positive, and a constant says nothing about scale.
        """
        spread = (self.yy + 2 * self.dy + self.dd).clamp(min=0.0)
        constant = spread <= _CONSTANT_SHARE * self.count * (self.mean_y + self.mean_d).square() + 1e-300
        factor = _ratio(self.yy + self.dy, spread, constant)
        return self._with(factor, self.mean_y - factor * (self.mean_y + self.mean_d))

    def fit_through_origin(self) -> AffineFit:
        """The same without an offset, for a layer that is to stay without bias: factor = Σoy / Σo²."""
        mean_o = self.mean_y + self.mean_d
        power = self.yy + 2 * self.dy + self.dd + self.count * mean_o.square()
        factor = _ratio(self.yy + self.dy + self.count * mean_o * self.mean_y, power, power <= 0)
        return self._with(factor, torch.zeros_like(factor))

    def with_factor(self, factor: Vector) -> AffineFit:
        """The fit with a given factor and the offset that then corrects the mean."""
        fixed = torch.from_numpy(np.asarray(factor, dtype=np.float64))
        return self._with(fixed, self.mean_y - fixed * (self.mean_y + self.mean_d))

    def _with(self, factor: Tensor, offset: Tensor) -> AffineFit:
        # y - a o - e = (1 - a) y - a d - e
        rest = 1 - factor
        bias = rest * self.mean_y - factor * self.mean_d - offset
        spread = rest.square() * self.yy - 2 * factor * rest * self.dy + factor.square() * self.dd
        residual = spread.clamp(min=0.0) + self.count * bias.square()
        return AffineFit(factor.numpy(), offset.numpy(), residual.numpy(), self.yy.clamp(min=0.0).numpy())


def _ratio(numerator: Tensor, denominator: Tensor, is_undefined: Tensor) -> Tensor:
    """numerator / denominator where that is defined and positive, else 1."""
    ratio = numerator / torch.where(is_undefined, torch.ones_like(denominator), denominator)
    return torch.where(is_undefined | (ratio <= 0), torch.ones_like(ratio), ratio)


def _by_channel(tensor: Tensor, channel_axis: int) -> Tensor:
    """The tensor as (outer, C, inner), a view where its memory allows."""
    axis = channel_axis % tensor.ndim
    shape = tensor.shape
    return tensor.reshape(prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))


def _channel_sum(values: Tensor) -> Tensor:
    """Sums of (outer, C, inner) over outer and inner, float64 on the CPU; runs of at most a few thousand in float32."""
    outer, channels, inner = values.shape
    if inner > 1:
        return values.sum(2).sum(0, dtype=torch.float64).cpu()
    rows = values.reshape(outer, channels)
    whole = outer // _RUN * _RUN
    runs = rows[:whole].reshape(-1, _RUN, channels).sum(1).sum(0, dtype=torch.float64)
    return (runs + rows[whole:].sum(0, dtype=torch.float64)).cpu()
