"""Train a 22-layer ResNet on the enlarged digits and export it: `python -m examples.train_resnet` (a few minutes)."""

from __future__ import annotations

import torch
from torch import nn

from examples.digits import save_dataset
from examples.training import ROOT, export, held_out_accuracy, train

WIDTHS = (32, 48, 64)
BLOCKS_PER_STAGE = 3


class Block(nn.Module):
    """Two 3 × 3 convolutions beside a short cut, which is a 1 × 1 convolution where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """(n, 1, 32, 32) images to (n, 10) logits: He et al. 2016, section 4.2, with wider stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        blocks: list[nn.Module] = []
        width_in = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for position in range(BLOCKS_PER_STAGE):
                blocks.append(Block(width_in, width, stride=2 if stage > 0 and position == 0 else 1))
                width_in = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTHS[-1], 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.blocks(torch.relu(self.norm(self.stem(image))))
        return self.head(features.mean(dim=(2, 3)))


def main() -> None:
    torch.manual_seed(0)
    model = ResNet()
    train(model, epochs=14, batch=64, peak_rate=4e-3, weight_decay=0.02, seed=0)
    print(f"accuracy on held-out originals: {held_out_accuracy(model):.4f}")
    export(model, ROOT / "models" / "digits_resnet.onnx")
    save_dataset(ROOT / "data" / "digits.npz")


if __name__ == "__main__":
    main()
