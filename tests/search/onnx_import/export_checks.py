"""What every exported model is held to: names of torch, outputs of ONNX Runtime, shapes at another batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from exported_models import export, make
from torch import nn

from kernels.operating_point import OperatingPoint
from search.graph import Graph
from search.onnx_import import Program, layer_bias, layer_weight, load_graph, operating_shapes

TOLERANCE = 1e-5


def runtime_outputs(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feed)


def check_outputs(graph: Graph, path: Path, inputs: tuple[torch.Tensor, ...]) -> None:
    feed = dict(zip((info.name for info in graph.inputs), inputs, strict=True))
    expected = runtime_outputs(path, {name: value.numpy() for name, value in feed.items()})
    with torch.no_grad():
        found = Program(graph).run(feed)
    for info, want in zip(graph.outputs, expected, strict=True):
        assert np.abs(found[info.name].numpy() - want).max() <= TOLERANCE * np.abs(want).max()


def check_export(name: str, path: Path, *, dynamo: bool, opset: int) -> Graph:
    model, inputs = make(name, fused=opset >= 14)
    export(model, inputs, path, dynamo=dynamo, opset=opset)
    graph = load_graph(path)
    check_outputs(graph, path, inputs)
    other = tuple(torch.cat([value, value[:1]]) for value in inputs)
    check_outputs(graph, path, other)
    modules = {
        module_name: module
        for module_name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding))
    }
    check_names(graph, modules)
    point = OperatingPoint(batch=3, dims=tuple((str(d), 7) for d in graph.inputs[0].shape[1:] if isinstance(d, str)))
    shapes = operating_shapes(graph, point)
    assert set(shapes.op_shapes) >= {layer.name for layer in graph.layers if layer.unquantized_reason is None}
    return graph


def check_names(graph: Graph, modules: dict[str, nn.Module]) -> None:
    """Every module is a layer under its own name, with its weight where no BatchNorm was folded into it."""
    found = {layer.name: layer for layer in graph.layers}
    missing = modules.keys() - found.keys()
    # An exporter that folds a BatchNorm away may keep only the norm's name (its place in the container).
    assert len(found) == len(modules), (sorted(found), sorted(modules))
    for name in modules.keys() - missing:
        weight, value = layer_weight(graph, found[name]), modules[name].weight.detach().numpy()
        assert weight.size == value.size
        if isinstance(modules[name], nn.Linear):
            assert found[name].weight_count == value.size
            assert any(np.array_equal(weight, form) for form in (value, value.T))
            bias = modules[name].bias
            kept = layer_bias(graph, found[name])
            assert (kept is None) == (bias is None)
            assert bias is None or np.array_equal(kept, bias.detach().numpy())
    assert len(missing) <= sum(isinstance(modules[name], nn.Conv2d) for name in modules), missing
    assert not any(isinstance(modules[name], (nn.Linear, nn.Embedding)) for name in missing), missing
