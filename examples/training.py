"""Training and export shared by the example models."""

from __future__ import annotations

import math
import time
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F

from examples.digits import CANVAS, augment, held_out_samples, split_originals

OPSET = 20
ROOT = Path(__file__).parent


def train(model: torch.nn.Module, *, epochs: int, batch: int, peak_rate: float, weight_decay: float, seed: int) -> None:
    """AdamW with one warm-up and a cosine, on fresh augmented views of the training originals in every epoch."""
    originals, _ = split_originals()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=weight_decay)
    steps_per_epoch = len(originals) // batch
    total, warm_up = epochs * steps_per_epoch, 2 * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * max(0, step - warm_up) / total))),
    )
    started = time.monotonic()
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(originals), generator=generator)[: steps_per_epoch * batch]
        loss_sum = 0.0
        for rows in order.split(batch):
            loss = F.cross_entropy(model(augment(originals.images[rows], generator)), originals.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.item()
        print(f"epoch {epoch + 1}/{epochs}  loss {loss_sum / steps_per_epoch:.4f}  {time.monotonic() - started:.0f} s")


@torch.no_grad()
def held_out_accuracy(model: torch.nn.Module) -> float:
    """Share of the held-out samples (the shipped dataset) that the model names correctly."""
    model.eval()
    images, labels, _ = held_out_samples()
    correct = sum(
        int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(128), labels.split(128), strict=True)
    )
    return correct / len(labels)


def export(model: torch.nn.Module, path: Path) -> None:
    """Write the model as one ONNX file with a dynamic batch, without the exporter's stack traces and paths."""
    model.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, CANVAS, CANVAS),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    strip_metadata(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, path)


def strip_metadata(proto: onnx.ModelProto) -> None:
    """Remove doc strings and metadata, which hold source paths of the exporting machine."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    graph = proto.graph
    for holder in [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        holder.doc_string = ""
        del holder.metadata_props[:]
