"""Affine refit: equal to least squares, whatever the chunks, and safe on channels that say nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search.candidates.affine_fit import PairMoments


def pair(seed, samples=300, channels=4, shift=0.0):
    random = np.random.default_rng(seed)
    exact = random.normal(size=(samples, channels)) * [1, 2, 3, 0.1] + shift
    quantized = exact * [0.9, 1.2, 0.5, 1.0] + random.normal(size=exact.shape) * 0.1 + [0.1, -0.2, 0.3, 0.0]
    return torch.from_numpy(exact), torch.from_numpy(quantized)


def moments_of(exact, quantized, cuts=(), axis=1):
    moments = PairMoments()
    for y, o in zip(torch.tensor_split(exact, cuts), torch.tensor_split(quantized, cuts), strict=True):
        moments.add(y, o, axis)
    return moments


def least_squares(exact, quantized):
    answers = []
    for channel in range(exact.shape[1]):
        design = np.stack([quantized[:, channel], np.ones(len(exact))], axis=1)
        (factor, offset), residual, *_ = np.linalg.lstsq(design, exact[:, channel].numpy(), rcond=None)
        answers.append((factor, offset, residual[0]))
    return np.array(answers).T


@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 300), max_size=4).map(sorted), shift=st.floats(-50, 50))
@settings(deadline=None, max_examples=30)
def test_equals_least_squares_however_the_data_is_cut(seed, cuts, shift):
    exact, quantized = pair(seed, shift=shift)
    fit = moments_of(exact, quantized, cuts).fit()
    factor, offset, residual = least_squares(exact, quantized)
    np.testing.assert_allclose(fit.factor, factor, rtol=1e-7)
    np.testing.assert_allclose(fit.offset, offset, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fit.residual, residual, rtol=1e-6)


def test_float32_outputs_far_from_zero_keep_their_digits():
    exact, quantized = pair(3, samples=4000, shift=100.0)
    fit = moments_of(exact.float(), quantized.float(), (1000, 2000, 3000)).fit()
    factor, _, residual = least_squares(exact, quantized)
    np.testing.assert_allclose(fit.factor, factor, rtol=1e-4)
    np.testing.assert_allclose(fit.residual, residual, rtol=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_any_axis_may_hold_the_channels(axis):
    random = torch.Generator().manual_seed(0)
    exact = torch.randn(3, 4, 5, 6, generator=random)
    quantized = exact + 0.1 * torch.randn(exact.shape, generator=random)
    fit = moments_of(exact, quantized, axis=axis).fit()
    rows = [tensor.movedim(axis, -1).reshape(-1, tensor.shape[axis]) for tensor in (exact, quantized)]
    factor, offset, _ = least_squares(rows[0].double(), rows[1].double())
    np.testing.assert_allclose(fit.factor, factor, rtol=1e-5)
    np.testing.assert_allclose(fit.offset, offset, atol=1e-6)


def test_constant_and_contrary_channels_get_only_their_mean_corrected():
    samples = torch.randn(200, 1, generator=torch.Generator().manual_seed(1))
    exact = torch.cat([samples, samples, samples + 5], dim=1)
    quantized = torch.cat([torch.full_like(samples, 3.0), -samples, 1000 + samples * 1e-9], dim=1)
    fit = moments_of(exact, quantized).fit()
    assert fit.factor.tolist() == [1.0, 1.0, 1.0]
    assert (quantized.double().numpy() + fit.offset).mean(0) == pytest.approx(exact.double().mean(0).numpy(), abs=1e-3)


def test_through_the_origin_there_is_no_offset():
    exact, quantized = pair(5)
    fit = moments_of(exact, quantized, (100,)).fit_through_origin()
    expected = ((quantized * exact).sum(0) / quantized.square().sum(0)).numpy()
    np.testing.assert_allclose(fit.factor, expected, rtol=1e-10)
    assert not fit.offset.any()
    np.testing.assert_allclose(
        fit.residual, (exact - quantized * torch.from_numpy(expected)).square().sum(0).numpy(), rtol=1e-8
    )


def test_unexplained_is_zero_for_exact_and_one_for_noise():
    exact, _ = pair(6)
    assert moments_of(exact, exact * 2 + 1).fit().unexplained == pytest.approx(0, abs=1e-12)
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(2)).double()
    assert moments_of(exact, noise).fit().unexplained > 0.97
    constant = torch.ones(10, 2)
    assert moments_of(constant, constant).fit().unexplained == 0


def test_empty_chunks_change_nothing():
    exact, quantized = pair(7)
    moments = moments_of(exact, quantized)
    before = moments.fit()
    moments.add(exact[:0], quantized[:0], 1)
    assert (moments.fit().factor == before.factor).all()
