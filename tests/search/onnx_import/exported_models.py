"""Small models with the structure of the families people submit, and their export by both torch exporters."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvBlock(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3, act: type[nn.Module] = nn.ReLU, **options) -> None:
        padding = options.pop("padding", kernel // 2)
        conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False, **options)
        super().__init__(conv, nn.BatchNorm2d(outputs), act())


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 8, 7, stride=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.a = nn.Sequential(ConvBlock(8, 8), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.b = nn.Sequential(ConvBlock(8, 16, stride=2), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.down = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = torch.relu(x + self.a(x))
        x = torch.relu(self.down(x) + self.b(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, gate: type[nn.Module]) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    """MobileNetV3 with HardSwish and HardSigmoid, EfficientNet with SiLU and Sigmoid."""

    def __init__(self, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 8, act=act, stride=2)
        self.expand = ConvBlock(8, 16, 1, act=act)
        self.depthwise = ConvBlock(16, 16, 5, act=act, groups=16)
        self.squeeze = SqueezeExcite(16, gate)
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Linear(8, 16), act(), nn.Dropout(0.2), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.squeeze(self.depthwise(self.expand(x))))
        return self.head(x.mean((2, 3)))


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBlock(3, 8, act=nn.ReLU6, stride=2), ConvBlock(8, 8, act=nn.ReLU6, groups=8), nn.Conv2d(8, 8, 1)
        )
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.layers(x), (1, 1)).reshape(x.shape[0], -1))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3))
        self.transition = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2, 2))
        self.fc = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(torch.relu(norm(torch.cat(features, 1)))))
        return self.fc(self.transition(torch.cat(features, 1)).amax((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = ConvBlock(3, 8), ConvBlock(8, 16)
        self.middle = nn.Sequential(ConvBlock(16, 16), nn.GroupNorm(4, 16), nn.InstanceNorm2d(16, affine=True))
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge, self.out = ConvBlock(16, 8, act=nn.LeakyReLU), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        c = F.interpolate(c, scale_factor=2, mode="bilinear", align_corners=False)
        merged = self.merge(torch.cat([a, self.up(b + c)], 1))
        return self.out(torch.cat([merged, F.interpolate(b[:, :8], size=x.shape[2:], mode="nearest")], 1))


class Yolo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 8, act=nn.SiLU, stride=2)
        self.down = ConvBlock(8, 16, act=nn.SiLU, stride=2)
        self.part = ConvBlock(8, 8, act=nn.SiLU)
        self.spp = ConvBlock(64, 16, 1, act=nn.SiLU)
        self.neck = ConvBlock(24, 16, act=nn.SiLU)
        self.box, self.cls = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 5, 1)
        self.dfl = nn.Conv2d(4, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        early = self.stem(x)
        x = self.down(early)
        left, right = x.chunk(2, 1)
        x = torch.cat([left, right + self.part(right)], 1)
        pooled = [x]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        x = self.spp(torch.cat(pooled, 1))
        x = self.neck(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), early], 1))
        boxes = self.box(x).flatten(2)
        n, _, a = boxes.shape
        boxes = self.dfl(boxes.view(n, 4, 4, a).transpose(2, 1).softmax(1)).view(n, 4, a)
        low, high = boxes.split(2, 1)
        boxes = torch.cat([(low + high) / 2, (high - low) * 8], 1)
        return torch.cat([boxes, self.cls(x).flatten(2).sigmoid()], 1)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool, approximate: str = "none", fused: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.act = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.GELU(approximate)
        self.heads, self.causal, self.fused = heads, causal, fused

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5
            if self.causal:
                scores = scores.masked_fill(torch.arange(length) > torch.arange(length)[:, None], float("-inf"))
            y = (scores if mask is None else scores + mask).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(self.act(self.up(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.Sequential(Block(16, 2, False), Block(16, 2, False, fused=False))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(40, 16), nn.Embedding(32, 16), nn.Embedding(2, 16)
        self.norm = nn.LayerNorm(16, eps=1e-12)
        self.blocks = nn.ModuleList([Block(16, 2, False), Block(16, 2, False)])
        self.pooler, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.norm(self.words(ids) + self.places(places) + self.kinds(torch.zeros_like(ids)))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        for block in self.blocks:
            x = block(x, bias)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class Gpt2(nn.Module):
    """Head tied to the embedding, tanh GELU, causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(40, 16), nn.Embedding(32, 16)
        self.blocks = nn.Sequential(Block(16, 2, True, "tanh", fused=False), Block(16, 2, True, "tanh"))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 40, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.wte(ids) + self.wpe(torch.arange(ids.shape[1])))))


def _image() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 16, 16),)


def _tokens() -> tuple[Tensor, ...]:
    return (torch.randint(0, 40, (2, 7)),)


def _masked() -> tuple[Tensor, ...]:
    return torch.randint(0, 40, (2, 7)), torch.ones(2, 7, dtype=torch.int64)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "resnet": (ResNet, _image),
    "mobilenet_v2": (MobileNetV2, _image),
    "mobilenet_v3": (lambda: Inverted(nn.Hardswish, nn.Hardsigmoid), _image),
    "efficientnet": (lambda: Inverted(nn.SiLU, nn.Sigmoid), _image),
    "densenet": (DenseNet, _image),
    "unet": (UNet, _image),
    "yolo": (Yolo, _image),
    "vit": (ViT, _image),
    "bert": (Bert, _masked),
    "gpt2": (Gpt2, _tokens),
}

TRANSFORMERS = ("vit", "bert", "gpt2")


def make(name: str, *, fused: bool = True) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A seeded model in evaluation mode with settled BatchNorm statistics, and example inputs.

    Without `fused`, attention is written out: scaled_dot_product_attention cannot be exported below opset 14.
    """
    torch.manual_seed(0)
    build, example = MODELS[name]
    model, inputs = build(), example()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Block):
                module.fused = module.fused and fused
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return model.eval(), inputs


def export(
    model: nn.Module, inputs: tuple[Tensor, ...], path: Path, *, dynamo: bool, opset: int, fixed: bool = False
) -> None:
    """Write the model with a dynamic batch, and a dynamic sequence for token models."""
    names = [f"input{index}" for index in range(len(inputs))]
    tokens = inputs[0].ndim == 2
    axes = {0: "batch", 1: "sequence"} if tokens else {0: "batch"}
    if fixed:
        options: dict = {}
    elif dynamo:
        options = {"dynamic_shapes": tuple({axis: torch.export.Dim.DYNAMIC for axis in axes} for _ in names)}
    else:
        options = {"dynamic_axes": {name: axes for name in names}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, inputs, str(path), input_names=names, output_names=["output"], opset_version=opset, dynamo=dynamo,
            **options,
        )  # fmt: skip
