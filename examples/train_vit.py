"""Train a small vision transformer on the enlarged digits and export it: `python -m examples.train_vit`."""

from __future__ import annotations

import torch
from torch import nn

from examples.digits import CANVAS, save_dataset
from examples.training import ROOT, export, held_out_accuracy, train

PATCH = 4
STEM_WIDTH = 32
WIDTH = 128
HEADS = 4
DEPTH = 6
HIDDEN = 2 * WIDTH
TOKENS = (CANVAS // PATCH) ** 2


class Block(nn.Module):
    """Pre-norm self-attention and a GELU MLP (Dosovitskiy et al. 2021, equations 2 and 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.reshape(-1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=2)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) * (WIDTH // HEADS) ** -0.5, dim=3)
        x = x + self.project((weights @ value).transpose(1, 2).reshape(-1, TOKENS, WIDTH))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """(n, 1, 32, 32) images to (n, 10) logits: two convolutions make the tokens (Xiao et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, STEM_WIDTH, 3, 2, 1)
        self.embed = nn.Conv2d(STEM_WIDTH, WIDTH, 3, 2, 1)
        self.position = nn.Parameter(0.2 * torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(nn.functional.gelu(self.stem(image))).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


def main() -> None:
    torch.manual_seed(0)
    model = VisionTransformer()
    train(model, epochs=75, batch=64, peak_rate=1.2e-3, weight_decay=0.05, seed=0)
    print(f"accuracy on held-out originals: {held_out_accuracy(model):.4f}")
    export(model, ROOT / "models" / "digits_vit.onnx")
    save_dataset(ROOT / "data" / "digits.npz")


if __name__ == "__main__":
    main()
