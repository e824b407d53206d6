"""Quality: what a built model loses against full precision, and how well it still answers the labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.data.dataset import Dataset
from search.evaluation.answers import Answers
from search.evaluation.estimate import Estimate, estimate_mean
from search.loss.inference import ModelLoss

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Quality:
    """Per-sample results of one model on one split, against the full-precision outputs of the same samples.

    `losses` has shape (n,). `correct` has shape (n,): the share of a sample's answers (one per sample, token or pixel)
    that match its labels, NaN where none of them counts; None without labels that fit (`search.evaluation.answers`).
    """

    losses: np.ndarray[Any, np.dtype[np.float64]]
    correct: np.ndarray[Any, np.dtype[np.float64]] | None
    groups: np.ndarray[Any, Any] | None

    def loss(self, seed: int = 0) -> Estimate:
        return estimate_mean(self.losses, self.groups, seed)

    def accuracy(self, seed: int = 0) -> Estimate | None:
        if self.correct is None:
            return None
        labelled = ~np.isnan(self.correct)
        return estimate_mean(self.correct[labelled], None if self.groups is None else self.groups[labelled], seed)

    def to_json(self, seed: int = 0) -> dict[str, Any]:
        accuracy = self.accuracy(seed)
        return {
            "loss": self.loss(seed).to_json(),
            "accuracy": None if accuracy is None else accuracy.to_json(),
        }


def run_in_chunks(
    run: Callable[[Arrays], Arrays], data: Dataset, size: int, outputs: Collection[str] | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs (all, or those named) of all samples, from a model called with at most `size` samples at a time."""
    parts = [run(chunk) for chunk in data.chunks(size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in outputs or parts[0]}


def assess(outputs: Arrays, reference: Arrays, data: Dataset, loss: ModelLoss) -> Quality:
    """Quality of `outputs` against `reference` and, where labels fit, against those."""
    answers = Answers.of(loss)
    correct = None if answers is None else answers.correct(outputs, data)
    if correct is not None and np.isnan(correct).all():
        correct = None
    return Quality(loss.per_sample(reference, outputs, data.inputs), correct, data.groups)
