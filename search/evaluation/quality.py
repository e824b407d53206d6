"""Quality: what a built model loses against full precision, and how well it still answers the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.data.dataset import Dataset
from search.evaluation.estimate import Estimate, estimate_mean
from search.loss.inference import ModelLoss

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Quality:
    """Per-sample results of one model on one split, against the full-precision outputs of the same samples.

    `losses` has shape (n,). `correct` has shape (n,): the share of a sample's answers (one per sample, token or pixel)
    that match its labels; None without labels or without a class axis.
    """

    losses: np.ndarray[Any, np.dtype[np.float64]]
    correct: np.ndarray[Any, np.dtype[np.float64]] | None
    groups: np.ndarray[Any, Any] | None

    def loss(self, seed: int = 0) -> Estimate:
        return estimate_mean(self.losses, self.groups, seed)

    def accuracy(self, seed: int = 0) -> Estimate | None:
        return None if self.correct is None else estimate_mean(self.correct, self.groups, seed)

    def to_json(self, seed: int = 0) -> dict[str, Any]:
        accuracy = self.accuracy(seed)
        return {
            "loss": self.loss(seed).to_json(),
            "accuracy": None if accuracy is None else accuracy.to_json(),
        }


def run_in_chunks(run: Callable[[Arrays], Arrays], data: Dataset, size: int) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs of all samples, from a model called with at most `size` samples at a time."""
    parts = [run(chunk) for chunk in data.chunks(size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assess(
    outputs: Arrays, reference: Arrays, data: Dataset, loss: ModelLoss, classes: tuple[str, int] | None
) -> Quality:
    """Quality of `outputs`; `classes` names the output and axis whose argmax answers the labels."""
    correct = None
    if data.labels is not None and classes is not None:
        name, axis = classes
        answers = outputs[name].argmax(axis=axis)
        if answers.shape == data.labels.shape:
            correct = (answers == data.labels).reshape(len(answers), -1).mean(axis=1, dtype=np.float64)
    return Quality(loss.per_sample(reference, outputs, data.inputs), correct, data.groups)
