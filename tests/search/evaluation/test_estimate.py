"""Bootstrap intervals cover the true mean, and grouped samples widen them."""

import numpy as np

from search.evaluation.estimate import estimate_difference, estimate_mean


def test_interval_covers_the_mean_about_95_percent_of_the_time() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for run in range(200):
        estimate = estimate_mean(rng.normal(2.0, 1.0, size=80), seed=run)
        covered += estimate.ci_low <= 2.0 <= estimate.ci_high
    assert 180 <= covered <= 199


def test_copies_of_one_sample_add_no_information() -> None:
    values = np.random.default_rng(0).normal(size=50)
    single = estimate_mean(values)
    copied = estimate_mean(np.repeat(values, 4), groups=np.repeat(np.arange(50), 4))
    assert copied.samples == 200
    assert copied.clusters == 50
    width, copied_width = single.ci_high - single.ci_low, copied.ci_high - copied.ci_low
    assert abs(copied_width - width) < 0.1 * width


def test_paired_difference_cancels_what_both_share() -> None:
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 10, size=200)
    difference = estimate_difference(shared + 0.1, shared)
    assert abs(difference.value - 0.1) < 1e-9
    assert difference.ci_high - difference.ci_low < 1e-9
