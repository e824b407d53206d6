"""Correction: the fit is folded into scales and bias, codes stay, and an int32 bias cannot overflow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.recipe import Granularity, Numerics
from search.candidates.affine_fit import PairMoments
from search.candidates.correction import correct
from search.quantizer.clipping import quantize_weight
from search.quantizer.storage import INT32_BIAS_LIMIT

NUMERICS = {
    "channel": Numerics(3, symmetric=True, signed=True, granularity=Granularity.CHANNEL),
    "group": Numerics(3, symmetric=True, signed=True, granularity=Granularity.GROUP, group_size=4),
    "tensor": Numerics(3, symmetric=True, signed=True, granularity=Granularity.TENSOR),
}


def setting(kind, shift=0.0, seed=0):
    random = np.random.default_rng(seed)
    weight = random.normal(size=(16, 5)).astype(np.float32)
    inputs = (random.normal(size=(400, 16)) + shift).astype(np.float32)
    quantized = quantize_weight(weight, NUMERICS[kind], 1, "min-max")
    moments = PairMoments()
    moments.add(torch.from_numpy(inputs @ weight), torch.from_numpy(inputs @ quantized.dequantize()), 1)
    return inputs, weight, quantized, moments


@pytest.mark.parametrize("kind", NUMERICS)
def test_the_corrected_layer_computes_the_least_squares_output(kind):
    inputs, weight, quantized, moments = setting(kind, shift=1.0)
    bias = np.arange(5, dtype=np.float32)
    corrected = correct(quantized, bias, moments)
    exact = inputs @ weight + bias
    raw, refitted = inputs @ quantized.dequantize() + bias, inputs @ corrected.weight.dequantize() + corrected.bias
    fit = moments.fit()
    np.testing.assert_allclose(refitted, fit.factor * (raw - bias) + fit.offset + bias, rtol=1e-4, atol=1e-4)
    assert np.square(refitted - exact).sum() < np.square(raw - exact).sum()
    wrong = np.square(refitted - exact).sum() / np.square(exact - exact.mean(0)).sum()
    assert corrected.residual == pytest.approx(wrong, rel=1e-3)
    assert corrected.weight.codes is quantized.codes


def test_a_layer_without_bias_gets_one_only_where_it_helps():
    _, _, quantized, centred = setting("channel")
    assert correct(quantized, None, centred).bias is None
    _, _, quantized, shifted = setting("channel", shift=2.0)
    assert correct(quantized, None, shifted).bias is not None
    assert correct(quantized, None, shifted, adds_bias=False).bias is None
    assert correct(quantized, None, centred, adds_bias=True).bias is not None


def test_the_int32_bias_of_a_nearly_dead_channel_still_fits():
    _, _, quantized, _ = setting("channel")
    samples = torch.randn(500, 5, generator=torch.Generator().manual_seed(0))
    moments = PairMoments()
    moments.add(samples * torch.tensor([1e-12, 1, 1, 1, 1]), samples, 1)  # channel 0: a fitted factor of 1e-12
    bias = np.full(5, 50.0, dtype=np.float32)
    free, bound = correct(quantized, bias, moments), correct(quantized, bias, moments, int32_input_scale=0.01)
    assert abs(free.bias[0]) / (0.01 * free.weight.scale[0]) > INT32_BIAS_LIMIT
    assert (np.abs(bound.bias) <= INT32_BIAS_LIMIT * 0.01 * bound.weight.scale * (1 + 1e-6)).all()
    np.testing.assert_allclose(bound.weight.scale[1:], free.weight.scale[1:])
