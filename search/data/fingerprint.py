"""Fingerprints: hashes of arrays, so that work saved earlier is taken up only where its inputs were the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class Digest(Protocol):
    """A running hash, as `hashlib` makes them."""

    def update(self, data: bytes, /) -> object: ...


def add_array(digest: Digest, name: str, array: np.ndarray[Any, Any]) -> None:
    """Feed a named array, its type and shape included."""
    digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
    digest.update(np.ascontiguousarray(array).tobytes())


def add_chunks(digest: Digest, chunks: Sequence[Mapping[str, np.ndarray[Any, Any]]]) -> None:
    """Feed samples, and how they are cut into chunks: sums over chunks depend on that."""
    digest.update(f"{[len(next(iter(chunk.values()))) for chunk in chunks]}\0".encode())
    for chunk in chunks:
        for name in sorted(chunk):
            add_array(digest, name, np.asarray(chunk[name]))
