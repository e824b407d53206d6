"""Digits on a 32 × 32 canvas: scikit-learn's 8 × 8 digits, enlarged and bent at random; split by original image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

CANVAS = 32
GREY_LEVELS = 63
"""Samples are stored as multiples of 1 / GREY_LEVELS: float32 arrays that still compress to little more than a byte."""


@dataclass(frozen=True)
class Originals:
    """Untouched 8 × 8 digits: `images` (n, 1, 8, 8) in [0, 1], `labels` (n,), `ids` (n,) rows of the source table."""

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


def split_originals(held_out: float = 0.3, seed: int = 0) -> tuple[Originals, Originals]:
    """Training and held-out originals. Augmentation happens after the split, so no copy is on the other side."""
    table = load_digits()
    images = torch.tensor(table.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(table.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    cut = round(len(labels) * (1 - held_out))
    train, test = order[:cut], order[cut:]
    return Originals(images[train], labels[train], train), Originals(images[test], labels[test], test)


def augment(images: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """(n, 1, 32, 32) views of (n, 1, 8, 8) digits: rotated, scaled, sheared, shifted, and changed in contrast.

    At strength 1: ±22.5°, scale 0.7 to 1.1, shear ±0.25, shift ±12 % of the canvas, contrast 0.4 to 1.
    """
    count = len(images)

    def uniform(low: float, high: float) -> torch.Tensor:
        middle, half = (low + high) / 2, strength * (high - low) / 2
        return middle + half * (2 * torch.rand(count, generator=generator) - 1)

    angle, scale, shear = uniform(-math.pi / 8, math.pi / 8), 1 / uniform(0.7, 1.1), uniform(-0.25, 0.25)
    cos, sin = torch.cos(angle), torch.sin(angle)
    affine = torch.stack(
        [
            torch.stack([scale * cos, scale * (shear * cos - sin), uniform(-0.24, 0.24)], dim=1),
            torch.stack([scale * sin, scale * (shear * sin + cos), uniform(-0.24, 0.24)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine, [count, 1, CANVAS, CANVAS], align_corners=False)
    large = F.interpolate(images, size=CANVAS, mode="bicubic", align_corners=False).clamp(0, 1)
    bent = F.grid_sample(large, grid, align_corners=False) * uniform(0.4, 1.0).view(-1, 1, 1, 1)
    return torch.round(bent.clamp(0, 1) * GREY_LEVELS) / GREY_LEVELS


def held_out_samples(
    copies: int = 2, strength: float = 0.75, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`copies` augmented views of every held-out original: images, labels, and the original's id as group.

    Milder than in training, so that the models' errors are mostly their own and not the picture's.
    """
    _, test = split_originals()
    generator = torch.Generator().manual_seed(seed)
    images = torch.cat([augment(test.images, generator, strength) for _ in range(copies)])
    return images, test.labels.repeat(copies), test.ids.repeat(copies)


def save_dataset(path: Path) -> None:
    """Write the held-out samples as the dataset both example models are searched with."""
    images, labels, groups = held_out_samples()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        image=images.numpy().astype(np.float32),
        labels=labels.numpy().astype(np.int64),
        groups=groups.numpy().astype(np.int64),
    )
