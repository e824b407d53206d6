"""Labels: what they say about an output."""

from __future__ import annotations

import numpy as np
import pytest

from search.loss.labels import answered_axis


@pytest.mark.parametrize(
    "shape, labels, axis",
    [
        ((4, 3), [0, 2, 1, 1], 1),
        ((4, 3), [[0], [2], [1], [1]], 1),
        ((4, 3), [0, 3, 1, 1], None),
        ((4, 3), [0, -100, 1, 1], 1),
        ((4, 3), [-1, -1, -1, -1], None),
        ((4, 3), [0.0, 1.0, 1.0, 1.0], None),
        ((4, 1), [0, 0, 0, 0], None),
        ((4, 3, 1, 1), [0, 2, 1, 1], 1),
        ((4, 3, 2, 5), np.ones((4, 2, 5), int), 1),
        ((4, 3, 2, 5), np.ones((4, 1, 2, 5), int), 1),
        ((4, 2, 5, 3), np.ones((4, 2, 5), int), 3),
        ((4, 6, 3), np.ones((4, 6), int), 2),
        ((4, 6, 3), np.ones((4, 7), int), None),
        ((4,), [0, 1, 1, 0], None),
    ],
    ids=lambda value: str(np.shape(value)) if isinstance(value, np.ndarray) else str(value),
)
def test_the_axis_that_labels_answer(shape: tuple[int, ...], labels: object, axis: int | None) -> None:
    assert answered_axis(np.zeros(shape, np.float32), np.asarray(labels)) == axis
