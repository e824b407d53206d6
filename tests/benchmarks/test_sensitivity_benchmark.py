"""The arithmetic of the sensitivity benchmark, without its training runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.fresh_models import FRESH_MODELS, views
from benchmarks.sensitivity import paired_interval, predict
from examples.digits import split_originals
from search.sensitivity.estimate import Interactions, LossIncrease, Sensitivity

KEYS = (("a", "w8"), ("a", "w4"), ("b", "w8"), ("b", "w4"))


def sensitivity(interactions: Interactions | None) -> Sensitivity:
    values = dict(zip(KEYS, (1.0, 2.0, 4.0, 8.0), strict=True))
    return Sensitivity("m", "nats", {key: LossIncrease(v, 0.0, 1) for key, v in values.items()}, interactions)


def test_prediction_adds_shrunk_interactions_of_the_chosen_pair_only() -> None:
    matrix = np.arange(16.0).reshape(4, 4)
    matrix = matrix + matrix.T
    choice = {"a": "w4", "b": "w8"}
    assert predict(sensitivity(None), choice) == 6.0
    assert predict(sensitivity(Interactions(KEYS, matrix, 0.5)), choice) == 6.0 + 2 * 0.5 * matrix[1, 2]


def test_paired_interval_sees_the_better_ranking() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=100)
    close, far = truth + 0.1 * generator.normal(size=100), truth + 2.0 * generator.normal(size=100)
    low, high = paired_interval(close, far, truth, generator)
    assert 0 < low < high
    low, high = paired_interval(close, close, truth, generator)
    assert low == high == 0.0


def test_random_order_ranks_nothing() -> None:
    generator = np.random.default_rng(1)
    truth = generator.normal(size=100)
    low, _ = paired_interval(truth, generator.permutation(truth), truth, generator)
    assert low > 0.6


@pytest.mark.parametrize("fresh", FRESH_MODELS, ids=lambda fresh: fresh.name)
def test_fresh_models_have_twenty_layers_and_ten_classes(fresh) -> None:  # type: ignore[no-untyped-def]
    model = fresh.build().eval()
    weighted = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(weighted) >= 20
    images, labels, ids = views(split_originals()[0], 6, seed=0)
    assert model(images).shape == (6, 10)
    assert (len(labels), len(ids)) == (6, 6)
    again, _, _ = views(split_originals()[0], 6, seed=0)
    assert torch.equal(images, again)
