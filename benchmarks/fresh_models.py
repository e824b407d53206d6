"""Fresh models: a small ResNet and a small vision transformer trained on augmented digits from a seed of the run.

No metric can have been tuned on a model that did not exist before. Both have 22 layers and see 16 × 16 pixels.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.digits import Originals, augment, split_originals

CANVAS = 16
PATCH = 4
TOKENS = (CANVAS // PATCH) ** 2
WIDTH, HEADS, DEPTH = 64, 4, 5
STAGES = (12, 24, 48)
BLOCKS_PER_STAGE = 3
NOISE = 0.2
"""Of a grey range of 1: enough that the models stay unsure of some samples, as real ones are."""


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions around a shortcut (He et al. 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """(n, 1, 16, 16) to (n, 10): stem, three stages of three blocks, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, STAGES[0], 3, 1, 1, bias=False), nn.BatchNorm2d(STAGES[0]), nn.ReLU())
        blocks = []
        channels = STAGES[0]
        for width in STAGES:
            for _ in range(BLOCKS_PER_STAGE):
                blocks.append(ResidualBlock(channels, width, 2 if width != channels else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(image)).mean(dim=(2, 3)))


class Attention(nn.Module):
    """Pre-norm self-attention and a GELU MLP (Dosovitskiy et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.reshape(-1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=2)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) * (WIDTH // HEADS) ** -0.5, dim=3)
        x = x + self.project((weights @ value).transpose(1, 2).reshape(-1, TOKENS, WIDTH))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class SmallTransformer(nn.Module):
    """(n, 1, 16, 16) to (n, 10): 4 × 4 patches, five attention blocks, mean, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(Attention() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.embed(image).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


@dataclass(frozen=True)
class FreshModel:
    """One architecture with its training: `epochs` over the training originals, `peak_rate` of a one-cycle schedule."""

    name: str
    build: Callable[[], nn.Module]
    epochs: int
    peak_rate: float


FRESH_MODELS = (FreshModel("cnn", SmallResNet, 14, 4e-3), FreshModel("transformer", SmallTransformer, 50, 2e-3))


def views(originals: Originals, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """`count` augmented, noisy views, every original as often as any other: images, labels and the originals' ids."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-count // len(originals))
    rows = torch.cat([torch.randperm(len(originals), generator=generator) for _ in range(rounds)])[:count]
    images = F.avg_pool2d(augment(originals.images[rows], generator), 2)
    noisy = images + NOISE * torch.randn(images.shape, generator=generator)
    return noisy, originals.labels[rows], originals.ids[rows]


def part(originals: Originals, start: int, stop: int) -> Originals:
    return Originals(originals.images[start:stop], originals.labels[start:stop], originals.ids[start:stop])


def train(fresh: FreshModel, seed: int) -> nn.Module:
    """The model after training from this seed, in eval mode."""
    torch.manual_seed(seed)
    model = fresh.build()
    originals, _ = split_originals()
    batch = 64
    steps = fresh.epochs * (len(originals) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=fresh.peak_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, fresh.peak_rate, total_steps=steps)
    for epoch in range(fresh.epochs):
        images, labels, _ = views(originals, len(originals), seed + epoch)
        for start in range(0, len(images) - batch + 1, batch):
            loss = F.cross_entropy(model(images[start : start + batch]), labels[start : start + batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """The model as ONNX with a dynamic batch, input `image` and output `logits`."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(
            model, (torch.zeros(2, 1, CANVAS, CANVAS),), path, input_names=["image"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), opset_version=21, dynamo=True, verbose=False,
        )  # fmt: skip


def accuracy(logits: np.ndarray, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels.numpy()).mean())
