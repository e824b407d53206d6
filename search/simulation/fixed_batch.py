"""Fixed batch: a chunk of any number of samples cut to the batch that an export accepts, and its answers joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from search.simulation.simulator import Arrays, count_samples

Values = TypeVar("Values", np.ndarray[Any, Any], Tensor)


def pieces(inputs: Arrays, batch: int | None) -> list[tuple[Arrays, int]]:
    """The chunk in pieces of `batch` samples, the last padded with its last sample, and the real samples in each."""
    count = count_samples(inputs) if inputs else 0
    if batch is None or count == batch:
        return [(inputs, count)]
    cut: list[tuple[Arrays, int]] = []
    for first in range(0, count, batch):
        real = min(batch, count - first)
        indices = np.minimum(np.arange(first, first + batch), count - 1)
        cut.append(({name: np.asarray(array)[indices] for name, array in inputs.items()}, real))
    return cut


def joined(
    parts: Sequence[tuple[Mapping[str, np.ndarray[Any, Any]], int]], batch: int | None
) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of all pieces, with the number of real samples in each, as those of one chunk."""
    first, real = parts[0]
    if len(parts) == 1 and (batch is None or real == batch):
        return dict(first)
    assert batch is not None
    return {name: np.concatenate([cut_padding(part[name], real, batch) for part, real in parts]) for name in first}


def cut_padding(values: Values, real: int, batch: int) -> Values:
    """The rows of `real` samples out of `batch`: the leading axis is the batch, or the batch times something."""
    if real == batch or values.ndim == 0 or values.shape[0] % batch:
        return values.reshape(1) if values.ndim == 0 else values
    return values[: values.shape[0] // batch * real]
