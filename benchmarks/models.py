"""Models that benchmarks build and export in the run: well-known shapes with random weights, nothing downloaded."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from examples.train_resnet import Block

OPSET = 20


class ResNet18(nn.Module):
    """(n, 3, 224, 224) images to (n, 1000) logits: He et al. 2016, table 1, 18 layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        width_in = 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [Block(width_in, width, stride), Block(width, width, 1)]
            width_in = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.pool(self.stem(image))).mean(dim=(2, 3)))


class _Block(nn.Module):
    """Pre-norm self-attention and a GELU MLP over (batch, tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.project = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        normed = self.norm1(x)
        query, key, value = (
            part(normed).reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) * (width // self.heads) ** -0.5, dim=3)
        x = x + self.project((weights @ value).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """(n, tokens, width) embeddings through `depth` blocks: the body of an encoder, without its embedding table."""

    def __init__(self, depth: int = 6, width: int = 384, heads: int = 6) -> None:
        super().__init__()
        self.width = width
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return self.norm(self.blocks(embeddings))


def resnet18(path: Path, seed: int = 0) -> Path:
    """Write a ResNet-18 with seeded random weights and lively BatchNorm statistics; input `image`."""
    torch.manual_seed(seed)
    model = ResNet18()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return _export(model, torch.zeros(2, 3, 224, 224), path, "image", {0: torch.export.Dim("batch")})


def transformer(path: Path, seed: int = 0) -> Path:
    """Write a transformer of 6 layers x 384 with seeded random weights; input `embeddings` (batch, tokens, 384)."""
    torch.manual_seed(seed)
    model = Transformer()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    return _export(model, torch.zeros(2, 16, model.width), path, "embeddings", dims)


def _export(model: nn.Module, example: torch.Tensor, path: Path, name: str, dims: dict[int, object]) -> Path:
    """Export quietly: the exporter reports packages it would like to have."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(), (example,), input_names=[name], dynamic_shapes=(dims,), opset_version=OPSET, dynamo=True,
            verbose=False,
        )  # fmt: skip
    assert program is not None
    onnx.save_model(program.model_proto, path)
    return path
