"""Labels: what whole-number labels say about an output that they answer."""

from __future__ import annotations

from search.loss.model_loss import Array


def answered_axis(values: Array, labels: Array) -> int | None:
    """The class axis of an output that `labels` answer: one class per sample, token or pixel.

    None when no axis fits: labels then have another shape, or number more classes than the axis has. Negative labels
    (−100 by custom) count for nothing.
    """
    if values.ndim < 2 or labels.dtype.kind not in "iu" or not labels.size or labels.max() < 0:
        return None
    wanted = [size for size in labels.shape[1:] if size != 1]
    for axis in dict.fromkeys((1, values.ndim - 1)):
        rest = [size for place, size in enumerate(values.shape) if place not in (0, axis) and size != 1]
        if rest == wanted and 1 < values.shape[axis] > labels.max():
            return axis
    return None
