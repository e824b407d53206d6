"""One layer alone: its weighted op as a function of input and weight, without the bias."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from search.graph import Graph, Layer
from search.onnx_import import layer_weight
from search.onnx_import.ops import OPS
from search.onnx_import.ops.table import Call


class LayerFunction:
    """The layer's node as `f(input, weight) -> output before bias`; attributes (stride, transB, …) are the node's.

    `weight` has the layout of `Layer.weight_shape`. Works for graphs with ops that the table lacks elsewhere, since
    only this node is computed. `exact_weight` is the weight in full precision.
    """

    def __init__(self, graph: Graph, layer: Layer) -> None:
        node = graph.nodes[layer.node]
        self.exact_weight = torch.from_numpy(layer_weight(graph, layer).copy())
        self._node = replace(node, inputs=node.inputs[:2], outputs=node.outputs[:1])
        self._op = OPS[node.op_type]
        self._opset = graph.opset
        self._weight_first = layer.weight_position == 0

    def __call__(self, values: Tensor, weight: Tensor) -> Tensor:
        inputs = (weight, values) if self._weight_first else (values, weight)
        result = self._op(Call(self._node, inputs, self._opset, torch.float32))
        assert isinstance(result, Tensor)
        return result


def output_channel_axis(graph: Graph, layer: Layer) -> int:
    """The axis of the layer's output that runs over its output channels: 1 behind a convolution, else the last."""
    return 1 if graph.nodes[layer.node].op_type in ("Conv", "ConvTranspose") else -1


def shaped_for_output(values: Tensor, axis: int, rank: int) -> Tensor:
    """A (C,) tensor shaped to broadcast along `axis` of an output with `rank` axes."""
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)
