"""Answers against labels: which shapes belong together, which labels count, and what is said where none do."""

import numpy as np
import pytest

from search.data.dataset import Dataset
from search.evaluation.answers import why_not_compared
from search.evaluation.quality import assess
from search.loss.model_loss import LossKind, ModelLoss, OutputLoss

CLASSES = ModelLoss((OutputLoss("y", LossKind.SOFTMAX_KL),))
YES_NO = ModelLoss((OutputLoss("y", LossKind.SIGMOID_KL),))
LOGITS = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]


def correct(loss: ModelLoss, values: np.ndarray, labels: np.ndarray, **inputs: np.ndarray) -> list[float] | None:
    outputs = {"y": values}
    found = assess(outputs, outputs, Dataset(inputs or {"x": np.zeros(len(values))}, labels), loss).correct
    return None if found is None else found.tolist()


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(np.array([0, 1, 2, 1]), id="plain"),
        pytest.param(np.array([[0], [1], [2], [1]], np.int32), id="column"),
        pytest.param(np.array([0.0, 1.0, 2.0, 1.0]), id="whole-floats"),
    ],
)
def test_labels_of_one_number_per_sample_fit(labels: np.ndarray) -> None:
    assert correct(CLASSES, LOGITS, labels) == [1, 1, 1, 0]
    assert why_not_compared(CLASSES, {"y": LOGITS}, labels) is None


def test_negative_labels_do_not_count() -> None:
    tokens = np.stack([LOGITS[:3], LOGITS[:3], LOGITS[:3]])
    labels = np.array([[0, 1, -100], [2, 1, -100], [-100, -100, -100]])
    assert correct(CLASSES, tokens, labels)[:2] == [1.0, 0.5]
    found = assess({"y": tokens}, {"y": tokens}, Dataset({"x": tokens}, labels, np.array([7, 7, 8])), CLASSES)
    accuracy = found.accuracy()
    assert accuracy is not None
    assert (accuracy.value, accuracy.samples, accuracy.clusters) == (0.75, 2, 1)


def test_masked_positions_do_not_count() -> None:
    masked = ModelLoss((OutputLoss("y", LossKind.SOFTMAX_KL, mask="mask"),))
    tokens, labels = np.stack([LOGITS[:3], LOGITS[:3]]), np.array([[0, 0, 0], [0, 1, 0]])
    assert correct(masked, tokens, labels, mask=np.array([[1, 0, 0], [1, 1, 1]])) == [1.0, 2 / 3]


def test_yes_or_no_is_counted_for_every_value() -> None:
    values = np.array([[2.0, -1.0], [-0.5, -3.0]], np.float32)
    labels = np.array([[1, 0], [1, 0]])
    assert correct(YES_NO, values, labels) == [1.0, 0.5]
    shares = ModelLoss((OutputLoss("y", LossKind.SIGMOID_KL, probabilities=True),))
    assert correct(shares, 1 / (1 + np.exp(-values)), labels.astype(bool)) == [1.0, 0.5]


@pytest.mark.parametrize(
    "loss, labels, said",
    [
        pytest.param(CLASSES, np.zeros((4, 3)), "answers in shape (n)", id="one-hot"),
        pytest.param(CLASSES, np.array(["cat"] * 4), "<U3 of shape (n)", id="names"),
        pytest.param(CLASSES, np.full(4, 0.5), "class numbers", id="fractions"),
        pytest.param(YES_NO, np.zeros(4, int), "answers in shape (n, 3), labelled by 0 or 1", id="too-few"),
        pytest.param(
            ModelLoss((OutputLoss("y", LossKind.MSE),)), np.zeros(4), "no output has classes", id="regression"
        ),
    ],
)
def test_labels_that_cannot_be_compared_are_named(loss: ModelLoss, labels: np.ndarray, said: str) -> None:
    assert correct(loss, LOGITS, labels) is None
    assert said in (why_not_compared(loss, {"y": LOGITS}, labels) or "")


def test_without_a_label_that_counts_there_is_no_accuracy() -> None:
    quality = assess({"y": LOGITS}, {"y": LOGITS}, Dataset({"x": LOGITS}, np.full(4, -100)), CLASSES)
    assert quality.correct is None
    assert quality.accuracy() is None
