"""Clipping rules: each keeps its own promise, and MSE is never worse than min-max by its own measure."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.recipe import Granularity, Numerics
from search.quantizer.clipping import (
    ACTIVATION_RULES,
    WEIGHT_RULES,
    Histogram,
    activation_range,
    histogram_of,
    quantize_weight,
    range_error,
    weight_parameters,
)
from search.quantizer.uniform import range_parameters, weight_rows

U8 = Numerics(8, symmetric=False, signed=False, granularity=Granularity.TENSOR)
U4 = Numerics(4, symmetric=False, signed=False, granularity=Granularity.TENSOR)
S8 = Numerics(8, symmetric=True, signed=True, granularity=Granularity.TENSOR)


def per_channel(bits, symmetric=True):
    return Numerics(bits, symmetric=symmetric, signed=True, granularity=Granularity.CHANNEL)


def weight_error(weight, numerics, rule):
    return np.square(quantize_weight(weight, numerics, 0, rule).dequantize() - weight).sum(axis=1)


@pytest.fixture(scope="module")
def heavy_tailed():
    return np.random.default_rng(0).standard_t(3, size=(6, 400)).astype(np.float32)


def test_min_max_loses_nothing_at_the_ends(heavy_tailed):
    quantized = quantize_weight(heavy_tailed, per_channel(8), 0, "min-max")
    top = np.abs(heavy_tailed).max(1)
    assert np.abs(quantized.dequantize()).max(1) == pytest.approx(top, rel=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_clips_heavy_tails_and_beats_min_max(heavy_tailed, bits, symmetric):
    numerics = per_channel(bits, symmetric)
    assert (weight_error(heavy_tailed, numerics, "mse") < weight_error(heavy_tailed, numerics, "min-max")).all()


@pytest.mark.parametrize("bits", [3, 4])
def test_mse_is_close_to_the_best_scale_found_by_brute_force(heavy_tailed, bits):
    numerics = per_channel(bits)
    best = np.full(len(heavy_tailed), np.inf)
    for share in np.linspace(0.05, 1.2, 2000):
        scale = (np.abs(heavy_tailed).max(1) * share / (0.5 - numerics.code_min))[:, None]
        codes = np.clip(np.rint(heavy_tailed / scale), numerics.code_min, numerics.code_max)
        best = np.minimum(best, np.square(codes * scale - heavy_tailed).sum(1))
    assert (weight_error(heavy_tailed, numerics, "mse") <= 1.25 * best).all()


def test_percentile_ends_where_the_magnitudes_say(heavy_tailed):
    rows = weight_rows(heavy_tailed, per_channel(8), 0)
    scale, _ = weight_parameters(rows, "percentile-99")
    assert scale * 127 == pytest.approx(np.percentile(np.abs(heavy_tailed), 99, axis=1), rel=1e-5)


@pytest.mark.parametrize("rule", WEIGHT_RULES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_rule_handles_dead_constant_and_one_sided_channels(rule, symmetric):
    weight = np.zeros((4, 9), np.float32)
    weight[1], weight[2] = 0.7, np.linspace(0, 2, 9)
    weight[3, 4] = 1e-30
    quantized = quantize_weight(weight, per_channel(8, symmetric), 0, rule)
    read = quantized.dequantize()
    assert np.isfinite(quantized.scale).all()
    assert (quantized.scale > 0).all()
    assert (read[0] == 0).all()
    np.testing.assert_allclose(read[1], 0.7, rtol=0.1)
    assert np.abs(read - weight).max() < 0.2


def test_unknown_rules_are_named():
    rows = weight_rows(np.ones((2, 2), np.float32), S8, 0)
    with pytest.raises(ValueError, match="'golden'"):
        weight_parameters(rows, "golden")
    with pytest.raises(ValueError, match="'golden'"):
        activation_range(histogram_of(np.arange(4.0)), U8, "golden")


@pytest.mark.parametrize("rule", ACTIVATION_RULES)
@pytest.mark.parametrize("numerics", [U8, U4, S8])
def test_ranges_stay_inside_what_was_seen(rule, numerics):
    values = np.random.default_rng(3).standard_t(2, 20_000)
    histogram = histogram_of(values, bins=2048)
    low, high = activation_range(histogram, numerics, rule)
    assert values.min() <= low < high <= values.max()


@pytest.mark.parametrize("numerics", [U8, U4, S8])
def test_expected_error_is_the_measured_one(numerics):
    values = np.random.default_rng(4).normal(0.5, 1, 50_000)
    histogram = histogram_of(values, bins=2048)
    for low, high in ((-1.0, 2.0), (-3.0, 4.0), (-0.5, 0.5)):
        scale, point = range_parameters(np.array([low]), np.array([high]), numerics)
        codes = np.clip(np.rint(values / scale) + point, numerics.code_min, numerics.code_max)
        measured = np.square((codes - point) * scale - values).mean()
        expected = range_error(histogram, np.array([low]), np.array([high]), numerics)[0]
        assert expected == pytest.approx(measured, rel=0.05)


def test_mse_has_the_least_expected_error_of_all_rules():
    values = np.random.default_rng(5).standard_t(2.5, 50_000)
    histogram = histogram_of(values, bins=2048)
    errors = {
        rule: range_error(histogram, *(np.array([end]) for end in activation_range(histogram, U4, rule)), U4)[0]
        for rule in ACTIVATION_RULES
    }
    assert min(errors, key=errors.__getitem__) == "mse"
    assert errors["mse"] < 0.5 * errors["min-max"]


def test_entropy_cuts_a_lone_outlier_and_keeps_a_uniform():
    random = np.random.default_rng(6)
    lonely = np.concatenate([random.uniform(0, 1, 100_000), [50.0]])
    assert activation_range(histogram_of(lonely, bins=2048), U8, "entropy")[1] < 10
    uniform = random.uniform(0, 1, 100_000)
    assert activation_range(histogram_of(uniform, bins=2048), U8, "entropy")[1] > 0.8


def test_quantiles_interpolate_within_a_bin():
    histogram = Histogram(0.0, 4.0, np.array([1, 1, 1, 1]))
    assert histogram.quantile(0.5) == 2.0
    assert histogram.quantile(0.125) == 0.5
