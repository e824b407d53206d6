"""Affine refit: per output channel, the factor and offset that bring a quantized output closest to the exact one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Vector = np.ndarray[Any, np.dtype[np.float64]]

# A channel whose spread is below this share of its power is constant up to float32 rounding.
_CONSTANT_SHARE = 1e-11


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


class PairMoments:
    """Streamed second moments per channel of an exact output y and a quantized output o, in float64.

    Chunks are merged by the pairwise update of Chan, Golub and LeVeque (1979), so that means far from zero cost no
    digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean_y, self.mean_o, self.yy, self.oo, self.oy = (torch.zeros(1, dtype=torch.float64) for _ in range(5))

    def add(self, exact: Tensor, quantized: Tensor, channel_axis: int) -> None:
        """One chunk of outputs of equal shape; every axis but `channel_axis` runs over samples."""
        self.merge(_moments(exact, quantized, channel_axis))

    def merge(self, chunk: tuple[int, Tensor, Tensor, Tensor, Tensor, Tensor]) -> None:
        count, mean_y, mean_o, yy, oo, oy = chunk
        if count == 0:
            return
        total = self.count + count
        gap_y, gap_o, weight = mean_y - self.mean_y, mean_o - self.mean_o, self.count * count / total
        self.yy = self.yy + yy + gap_y * gap_y * weight
        self.oo = self.oo + oo + gap_o * gap_o * weight
        self.oy = self.oy + oy + gap_o * gap_y * weight
        self.mean_y = self.mean_y + gap_y * (count / total)
        self.mean_o = self.mean_o + gap_o * (count / total)
        self.count = total

    def fit(self) -> AffineFit:
        """The least-squares factor cov(o, y) / var(o) and offset mean(y) - factor * mean(o).

        A channel whose o is constant, or whose factor would not be positive, keeps factor 1 and gets only its mean
        corrected: a scale must stay positive, and a constant says nothing about scale.
        """
        oo, oy = self.oo, self.oy
        constant = oo <= _CONSTANT_SHARE * self.count * self.mean_o.square() + 1e-300
        factor = torch.where(constant, torch.ones_like(oo), oy / torch.where(constant, torch.ones_like(oo), oo))
        factor = torch.where(factor > 0, factor, torch.ones_like(factor))
        return self._with(factor, self.mean_y - factor * self.mean_o)

    def fit_through_origin(self) -> AffineFit:
        """The same without an offset, for a layer that is to stay without bias: factor = Σoy / Σo²."""
        raw_oo = self.oo + self.count * self.mean_o.square()
        raw_oy = self.oy + self.count * self.mean_o * self.mean_y
        factor = torch.where(raw_oo > 0, raw_oy / torch.where(raw_oo > 0, raw_oo, torch.ones_like(raw_oo)), 1.0)
        factor = torch.where(factor > 0, factor, torch.ones_like(factor))
        return self._with(factor, torch.zeros_like(factor))

    def with_factor(self, factor: Vector) -> AffineFit:
        """The fit with a given factor and the offset that then corrects the mean."""
        fixed = torch.from_numpy(np.asarray(factor, dtype=np.float64))
        return self._with(fixed, self.mean_y - fixed * self.mean_o)

    def _with(self, factor: Tensor, offset: Tensor) -> AffineFit:
        bias = self.mean_y - factor * self.mean_o - offset
        residual = self.yy - 2 * factor * self.oy + factor.square() * self.oo + self.count * bias.square()
        return AffineFit(
            factor.numpy(), offset.numpy(), residual.clamp(min=0.0).numpy(), self.yy.clamp(min=0.0).numpy()
        )


def _moments(exact: Tensor, quantized: Tensor, channel_axis: int) -> tuple[int, Tensor, Tensor, Tensor, Tensor, Tensor]:
    axis = channel_axis % exact.ndim
    over = [other for other in range(exact.ndim) if other != axis]
    if not over:
        exact, quantized, over = exact.unsqueeze(0), quantized.unsqueeze(0), [0]
        axis += 1
    channels = exact.shape[axis]
    count = exact.numel() // max(channels, 1)
    shape = [1] * exact.ndim
    shape[axis] = channels
    mean_y, mean_o = (tensor.mean(over, dtype=torch.float64) for tensor in (exact, quantized))
    # Centred in the tensors' own precision: the product's rounding is then relative to the spread, not to the mean.
    y = exact - mean_y.reshape(shape).to(exact.dtype)
    o = quantized - mean_o.reshape(shape).to(quantized.dtype)
    yy, oo, oy = (product.sum(over, dtype=torch.float64).cpu() for product in (y * y, o * o, o * y))
    # The means used for centring were rounded to float32; take the small remainder out again.
    rest_y, rest_o = y.mean(over, dtype=torch.float64).cpu(), o.mean(over, dtype=torch.float64).cpu()
    return (
        count,
        mean_y.cpu(),
        mean_o.cpu(),
        yy - count * rest_y * rest_y,
        oo - count * rest_o * rest_o,
        oy - count * rest_o * rest_y,
    )
