"""Answers: what an output with classes answers per sample, token or pixel, and how many answers match the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.data.dataset import Dataset
from search.loss.model_loss import LossKind, ModelLoss, OutputLoss

Array = np.ndarray[Any, Any]
_ANSWERING = (LossKind.SOFTMAX_KL, LossKind.SIGMOID_KL)


@dataclass(frozen=True)
class Answers:
    """The first output that has classes: the class of its largest value, or yes or no for each of its values."""

    output: OutputLoss

    @classmethod
    def of(cls, loss: ModelLoss) -> Answers | None:
        return next((cls(output) for output in loss.outputs if output.kind in _ANSWERING), None)

    def given(self, outputs: Mapping[str, Array]) -> Array:
        """Answers in the output's shape without the class axis (`softmax_kl`), or in its whole shape (`sigmoid_kl`)."""
        values = np.asarray(outputs[self.output.output])
        if self.output.kind is LossKind.SOFTMAX_KL:
            return np.asarray(values.argmax(axis=self.output.class_axis))
        return np.asarray(values > (0.5 if self.output.probabilities else 0.0))

    def compared(self, outputs: Mapping[str, Array], labels: Array) -> tuple[Array, Array] | None:
        """Answers and labels, rows of samples and whole numbers in each; None where they do not belong together.

        Axes of one entry make no difference: labels (n, 1) belong to answers (n,).
        """
        answers = self.given(outputs)
        if labels.dtype.kind not in "iubf" or _shape(answers) != _shape(labels):
            return None
        rows = labels.reshape(len(labels), -1)
        return (answers.reshape(len(answers), -1), rows) if np.array_equal(rows, np.rint(rows)) else None

    def correct(self, outputs: Mapping[str, Array], data: Dataset) -> Array | None:
        """Share of each sample's answers that match its labels, shape (n,); None without labels that fit.

        A negative label (−100 by custom) does not count, nor does a position that the loss masks; a sample of which
        nothing counts is NaN.
        """
        pair = None if data.labels is None else self.compared(outputs, data.labels)
        if pair is None:
            return None
        answers, labels = pair
        counted = labels >= 0
        if self.output.mask is not None:
            mask = data.inputs[self.output.mask].reshape(len(labels), -1) != 0
            counted &= np.repeat(mask, labels.shape[1] // mask.shape[1], axis=1)
        right = ((answers == labels) & counted).sum(axis=1, dtype=np.float64)
        total = counted.sum(axis=1, dtype=np.float64)
        return np.asarray(np.divide(right, total, out=np.full(len(right), np.nan), where=total > 0))


def why_not_compared(loss: ModelLoss, outputs: Mapping[str, Array], labels: Array) -> str | None:
    """A sentence on why these labels cannot be compared with what the model answers; None where they can be."""
    answers = Answers.of(loss)
    if answers is None:
        return "The labels are not compared with anything: no output has classes."
    if answers.compared(outputs, labels) is not None:
        return None
    shape, given = (", ".join(map(str, ("n", *each.shape[1:]))) for each in (answers.given(outputs), labels))
    wanted = "class numbers" if answers.output.kind is LossKind.SOFTMAX_KL else "0 or 1"
    return (
        f"The labels, {labels.dtype} of shape ({given}), are not compared with anything: output "
        f"{answers.output.output!r} answers in shape ({shape}), labelled by {wanted}."
    )


def _shape(values: Array) -> list[int]:
    return [size for size in values.shape[1:] if size != 1]
