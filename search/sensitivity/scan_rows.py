"""Scan rows: what one forward per (group, precision) leaves behind, the raw material of `kl` and `gauss_newton`.

A row is the loss of every sample (float64) and its Gauss–Newton factor (float32, see `search.loss.model_loss`).
Rows are kept one file each, so a scan stops and goes on, shards are merged by putting their rows together, and a
runtime takes those it has in common with another.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from search.sensitivity.estimate import Interactions, LossIncrease, Sensitivity

Key = tuple[str, str]
Array = np.ndarray[Any, Any]

SHRINK = 0.5
INTERACTION_SAMPLES = 128
_GRAM_BYTES = 1 << 28
_DROPPED = (
    f"Interactions between layers are not used: they need {INTERACTION_SAMPLES} samples, the scan had {{samples}}."
)


@dataclass(frozen=True)
class Row:
    """One (group, precision) measured: `losses` (n,) per sample and `factor` (n, K).

    `position` orders rows as the whole scan would; `fingerprint` names everything the row was computed from.
    """

    key: Key
    position: int
    losses: np.ndarray[Any, np.dtype[np.float64]]
    factor: np.ndarray[Any, np.dtype[np.float32]]
    fingerprint: str

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.losses).all() and np.isfinite(self.factor).all())


@dataclass(frozen=True)
class ScanRows:
    """The rows of a scan, or of a shard of it, over the same samples in the same order."""

    rows: tuple[Row, ...]
    unit: str
    notes: tuple[str, ...] = field(default=())

    @property
    def samples(self) -> int:
        return len(self.rows[0].losses) if self.rows else 0

    def sensitivities(self) -> dict[str, Sensitivity]:
        """`kl` (measured losses, additive) and `gauss_newton` (the same with pairwise interactions)."""
        return self._weighted(np.ones(self.samples))

    def resample(self, seed: int) -> dict[str, Sensitivity]:
        """The same two from a bootstrap of the samples: solve 20–50 of these to see how stable each choice is."""
        generator = np.random.default_rng(seed)
        return self._weighted(generator.multinomial(self.samples, np.full(self.samples, 1 / self.samples)))

    def _weighted(self, weights: Array) -> dict[str, Sensitivity]:
        """Estimates with integer sample weights that add up to the number of samples."""
        rows = [row for row in self.rows if row.is_finite]
        notes = self.notes + tuple(
            f"Group {row.key[0]!r} at {row.key[1]} gives outputs that are not finite and is not offered."
            for row in self.rows
            if not row.is_finite
        )
        increases = {row.key: _increase(row.losses, weights) for row in rows}
        kl = Sensitivity("kl", self.unit, increases, notes=notes)
        interactions = None
        if self.samples >= INTERACTION_SAMPLES:
            interactions = Interactions(tuple(row.key for row in rows), _gram(rows, weights), SHRINK)
        else:
            notes = (*notes, _DROPPED.format(samples=self.samples))
        return {"kl": kl, "gauss_newton": Sensitivity("gauss_newton", self.unit, increases, interactions, notes)}


def merge(parts: Iterable[ScanRows]) -> ScanRows:
    """One scan from its shards, in any order; equal to the unsharded scan."""
    parts = list(parts)
    rows = sorted((row for part in parts for row in part.rows), key=lambda row: row.position)
    if len({row.key for row in rows}) != len(rows) or len({len(row.losses) for row in rows}) > 1:
        raise ValueError("shards overlap or were scanned on different samples")
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    return ScanRows(tuple(rows), next((part.unit for part in parts), ""), tuple(notes))


def cross_layer_share(sensitivity: Sensitivity, precisions: dict[str, str]) -> float:
    """Part of the predicted loss increase of an allocation that is interaction between groups (0 = additive)."""
    chosen = [key for key in precisions.items() if key in sensitivity.increases]
    single = sum(sensitivity.increases[key].value for key in chosen)
    if sensitivity.interactions is None or not single:
        return 0.0
    index = {key: i for i, key in enumerate(sensitivity.interactions.keys)}
    at = [index[key] for key in chosen]
    block = sensitivity.interactions.matrix[np.ix_(at, at)]
    cross = sensitivity.interactions.shrink * float(block.sum() - np.trace(block))
    return cross / (single + cross) if single + cross > 0 else 0.0


def _increase(losses: Array, weights: Array) -> LossIncrease:
    samples = len(losses)
    mean = float((losses * weights).sum() / samples)
    spread = float((weights * (losses - mean) ** 2).sum())
    error = (spread / (samples * (samples - 1))) ** 0.5 if samples > 1 else float("inf")
    return LossIncrease(max(mean, 0.0), error, samples)


def _gram(rows: list[Row], weights: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """G[i, j] = 1/(2N) Σ_n w_n a_i,n · a_j,n in float64: symmetric and positive semidefinite by construction."""
    count, samples = len(rows), len(weights)
    gram = np.zeros((count, count))
    if not count:
        return gram
    step = max(1, _GRAM_BYTES // (8 * count * max(1, rows[0].factor.shape[1])))
    for start in range(0, samples, step):
        scale = np.sqrt(weights[start : start + step])[:, None]
        block = np.stack([(row.factor[start : start + step] * scale).reshape(-1) for row in rows])
        gram += block @ block.T
    return np.asarray((gram + gram.T) / (4 * samples), dtype=np.float64)


class RowFolder:
    """Rows on disk, each named by all it was computed from; a damaged one counts as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, fingerprint: str) -> Path:
        return self.folder / f"row_{fingerprint[:32]}.npz"

    def save(self, row: Row) -> None:
        path = self.path(row.fingerprint)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(
                file, key=np.array(row.key), position=row.position, losses=row.losses, factor=row.factor,
                fingerprint=row.fingerprint,
            )  # fmt: skip
        os.replace(partial, path)

    def load(self, key: Key, fingerprint: str) -> Row | None:
        """The row of this key that was computed from these inputs."""
        row = self._read(self.path(fingerprint))
        return row if row is not None and row.key == key and row.fingerprint == fingerprint else None

    def rows(self) -> list[Row]:
        """Every readable row, in scan order: what a merge needs of a shard's folder."""
        found = [row for path in sorted(self.folder.glob("row_*.npz")) if (row := self._read(path)) is not None]
        return sorted(found, key=lambda row: row.position)

    @staticmethod
    def _read(path: Path) -> Row | None:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                first, second = (str(part) for part in data["key"])
                return Row(
                    (first, second), int(data["position"]), data["losses"], data["factor"], str(data["fingerprint"])
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
