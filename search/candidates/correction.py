"""Correction: an affine fit folded into a weight's scales and its bias; the integer codes stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from search.assembly import QuantizedWeight
from search.candidates.affine_fit import AffineFit, PairMoments
from search.quantizer.storage import INT32_BIAS_LIMIT
from search.quantizer.uniform import scale_channels

Vector = np.ndarray[Any, np.dtype[np.float32]]

# A layer without bias gets one only if leaving it out would add more than this share to the remaining error.
_BIAS_GAIN = 0.05


@dataclass(frozen=True)
class Corrected:
    """Weight and complete bias after the fit, and the part of the output's variance that is still wrong.

    `factor` is what each channel's scales were multiplied by, shape (C,).
    """

    weight: QuantizedWeight
    bias: Vector | None
    residual: float
    factor: np.ndarray[Any, np.dtype[np.float64]]


def correct(
    weight: QuantizedWeight,
    exact_bias: Vector | None,
    moments: PairMoments,
    int32_input_scale: float | None = None,
    adds_bias: bool | None = None,
) -> Corrected:
    """The weight with each channel's scales times the fitted factor, and the bias plus the fitted offset.

    `moments` pair the exact output without bias with the output of this `weight`. `int32_input_scale` is s_x where
    the bias is stored as int32 at s_x * s_w: a factor so small that the bias would overflow is raised. `adds_bias`
    says whether a layer without bias gets one; None lets it have one where that takes out a real part of the error.
    """
    fit = moments.fit()
    if exact_bias is None:
        plain = moments.fit_through_origin()
        error, plain_error = float(fit.residual.sum()), float(plain.residual.sum())
        if not (plain_error > (1 + _BIAS_GAIN) * error if adds_bias is None else adds_bias):
            return Corrected(scale_channels(weight, plain.factor), None, plain.unexplained, plain.factor)
    start = np.zeros(len(fit.offset)) if exact_bias is None else exact_bias.astype(np.float64)
    if int32_input_scale is not None:
        fit = _without_overflow(fit, weight, start, moments, int32_input_scale)
    bias = np.asarray(start + fit.offset, dtype=np.float32)
    return Corrected(scale_channels(weight, fit.factor), bias, fit.unexplained, fit.factor)


def _without_overflow(
    fit: AffineFit, weight: QuantizedWeight, bias: np.ndarray[Any, Any], moments: PairMoments, input_scale: float
) -> AffineFit:
    scale = np.broadcast_to(weight.scale.astype(np.float64), fit.factor.shape) * input_scale
    if np.all(np.abs(bias + fit.offset) <= INT32_BIAS_LIMIT * scale * fit.factor):
        return fit
    # The offset moves with the factor, so bound it by its value at either end.
    reach = np.maximum(np.abs(bias + fit.offset), np.abs(bias + moments.with_factor(np.ones_like(fit.factor)).offset))
    return moments.with_factor(np.maximum(fit.factor, reach / (INT32_BIAS_LIMIT * scale)))
