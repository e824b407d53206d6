"""Byte count: what an allocation weighs on disk, known before anything is built.

A file is a fixed part (graph structure, constants of unweighted ops, layers that cannot be quantized) plus one
summand per layer. Summands are not estimated: the exporter writes each layer once into a copy of the graph without
weights, and the growth is measured. The only approximation is who pays for a quantizer pair that layers share: the
layer that writes the tensor where one with an output quantizer does, else the first that reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import numpy as np
import onnx

from kernels.precision import Precision
from kernels.recipe import Granularity, Numerics, Recipe
from search.artifact.graph_edit import strip_metadata
from search.artifact.layer_patterns import INT4_BITS, reads_static
from search.artifact.opset import INT4_OPSET, raise_opset, why_not_raisable
from search.artifact.qdq import export_assembly
from search.assembly import ActivationQuantizer, Assembly, Candidate, QuantizedWeight
from search.graph import Graph, Layer, LayerKind

_RUNTIME = "onnxruntime_cpu"
_PLACEHOLDER = Numerics(8, symmetric=False, signed=False, granularity=Granularity.TENSOR)
# Field tag and length of a sub-message: one byte of tag and, for what models hold, up to four of length.
_TAG_BYTES = 1


@dataclass(frozen=True)
class ByteCount:
    """Bytes on disk of one assembly: `total` = `fixed` + the sum of `layers` (every quantizable layer is listed)."""

    total: int
    fixed: int
    layers: Mapping[str, int]


class ByteCounter:
    """Sizes of one graph's layers at any recipe; keeps what it has computed. Use one per graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        skeleton = _without_weights(graph.model)
        if why_not_raisable(skeleton, INT4_OPSET) is None:
            # Raised once here, or every 4-bit layer would seem to pay for it.
            skeleton = raise_opset(skeleton, INT4_OPSET)
        self._skeleton = replace(graph, model=skeleton)
        self._layers = [layer for layer in graph.layers if layer.unquantized_reason is None]
        self._found: dict[tuple[str, Recipe | None, bool], int] = {}
        self._constants = {tensor.name: _field_bytes(tensor.ByteSize()) for tensor in graph.model.graph.initializer}
        self._outputs = {layer.quantized_tensor for layer in self._layers if layer.kind is LayerKind.CONV}
        self._first_reader: dict[str, str] = {}
        self._owner: dict[str, str] = {}
        self._users: Counter[str] = Counter()
        self._first_absorbing: str | None = None
        for layer in self._layers:
            if layer.kind is not LayerKind.EMBEDDING:
                self._first_reader.setdefault(layer.input, layer.name)
            if layer.activation_output is not None:
                self._first_absorbing = self._first_absorbing or layer.name
            for name in _constants_of(layer):
                self._owner.setdefault(name, layer.name)
                self._users[name] += 1

    @cached_property
    def fixed(self) -> int:
        """Bytes that no allocation changes: everything but the constants of quantizable layers."""
        empty = _export_bytes(self.graph, Assembly({}, {}))
        return empty - sum(self._constants.get(name, 0) for name in self._owner)

    def layer(self, layer: Layer, recipe: Recipe | None, *, bias: bool | None = None) -> int:
        """Bytes the layer adds when written by `recipe`, or in float32 when it is None.

        `bias` says whether the finished candidate has one; None means it does, except in an embedding.
        """
        with_bias = layer.kind is not LayerKind.EMBEDDING if bias is None else bias
        key = (layer.name, recipe, with_bias)
        if key not in self._found:
            self._found[key] = self._float(layer) if recipe is None else self._quantized(layer, recipe, with_bias)
        return self._found[key]

    def count(self, assembly: Assembly) -> ByteCount:
        """Bytes of a whole assembly, layer by layer."""
        floats = [layer for layer in self._layers if layer.name not in assembly.candidates]
        sizes = {layer.name: self.layer(layer, None) for layer in floats} | self.finished(assembly.candidates)
        return ByteCount(self.fixed + sum(sizes.values()), self.fixed, sizes)

    def finished(self, candidates: Mapping[str, Candidate]) -> dict[str, int]:
        """Bytes of every layer that has a candidate; of tied layers with the same codes only the first stores them."""
        sizes: dict[str, int] = {}
        stored: dict[str, list[QuantizedWeight]] = {}
        for layer in self._layers:
            if layer.name not in candidates:
                continue
            candidate = candidates[layer.name]
            weight, before = candidate.weight, stored.setdefault(layer.weight, [])
            sizes[layer.name] = self.layer(layer, candidate.recipe, bias=candidate.bias is not None)
            if self._shares_codes(layer, candidate.recipe) and not any(
                weight.bits == other.bits and np.array_equal(weight.codes, other.codes) for other in before
            ):
                sizes[layer.name] += _code_bytes(weight)
            before.append(weight)
        return sizes

    def _float(self, layer: Layer) -> int:
        return sum(self._constants.get(name, 0) for name in _constants_of(layer) if self._owner[name] == layer.name)

    def _quantized(self, layer: Layer, recipe: Recipe, bias: bool) -> int:
        pays_for_input = (
            reads_static(recipe)
            and layer.input not in self._outputs
            and self._first_reader.get(layer.input) == layer.name
        )
        candidate = _placeholder(layer, recipe, bias)
        quantizers = {
            tensor: ActivationQuantizer(tensor, scale, zero_point, recipe.activation or _PLACEHOLDER)
            for tensor, scale, zero_point in ((layer.input, 0.5, 1), (layer.quantized_tensor, 0.25, 2))
        }
        # Both exports hold the input's pair unless this layer pays for it.
        given = frozenset() if pays_for_input or not reads_static(recipe) else frozenset({layer.input})
        outputs = given | ({layer.quantized_tensor} if recipe.output_quantized else frozenset())
        written = _export_bytes(self._skeleton, Assembly({layer.name: candidate}, quantizers, outputs))
        bare = _export_bytes(self._skeleton, Assembly({}, quantizers, given))
        emptied = {tensor.name: tensor for tensor in self._skeleton.model.graph.initializer}
        gone = [name for name in _constants_of(layer) if name in emptied and self._users[name] == 1]
        replaced = sum(_field_bytes(int(emptied[name].ByteSize())) for name in gone)
        size = written - bare + replaced
        if self._shares_codes(layer, recipe):
            size -= _code_bytes(candidate.weight)
        if recipe.output_quantized and layer.activation_output and layer.name != self._first_absorbing:
            # Behind a ReLU the zero point is 0, and equal constants are stored once.
            size -= _zero_point_bytes(layer.activation_output)
        return size

    def _shares_codes(self, layer: Layer, recipe: Recipe) -> bool:
        """Whether an earlier layer of the same tie has already stored these codes, in the same layout."""
        first = self.graph.layer(self._owner[layer.weight])
        same_layout = (first.kind, first.weight_shape, first.channel_axis) == (
            layer.kind, layer.weight_shape, layer.channel_axis,
        )  # fmt: skip
        is_copied = recipe.activation is None and layer.kind is LayerKind.LINEAR  # weight-only kernels own their codes
        return first is not layer and same_layout and not is_copied


def layer_size_bytes(graph: Graph, layer: Layer, recipe: Recipe | None) -> int:
    """Bytes one layer adds at a recipe (None: float32). For many questions about a graph keep a `ByteCounter`."""
    return ByteCounter(graph).layer(layer, recipe)


def fixed_size_bytes(graph: Graph) -> int:
    """Bytes on disk that no allocation changes."""
    return ByteCounter(graph).fixed


def counted_bytes(graph: Graph, assembly: Assembly) -> ByteCount:
    """What an allocation counts for this assembly; equal to the exported file within 1 %."""
    return ByteCounter(graph).count(assembly)


def _export_bytes(graph: Graph, assembly: Assembly) -> int:
    return int(export_assembly(graph, assembly, _RUNTIME).ByteSize())


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model's structure: every initializer keeps its name and shape and loses its values."""
    copy = onnx.ModelProto()
    for name in ("ir_version", "opset_import", "functions"):
        value = getattr(model, name)
        if name == "ir_version":
            copy.ir_version = value
        else:
            getattr(copy, name).extend(value)
    graph = model.graph
    copy.graph.name = graph.name
    for name in ("node", "input", "output", "value_info"):
        getattr(copy.graph, name).extend(getattr(graph, name))
    copy.graph.initializer.extend(
        onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims) for tensor in graph.initializer
    )
    return strip_metadata(copy)


def _field_bytes(size: int) -> int:
    """Bytes of a sub-message of `size` bytes with its tag and length."""
    return _TAG_BYTES + max(1, ceil(size.bit_length() / 7)) + size


def _constants_of(layer: Layer) -> tuple[str, ...]:
    return (layer.weight,) if layer.bias is None else (layer.weight, layer.bias.tensor)


def _zero_point_bytes(tensor: str) -> int:
    constant = onnx.numpy_helper.from_array(np.asarray(0, dtype=np.uint8), f"{tensor}.z")
    return _field_bytes(int(constant.ByteSize()))


def _code_bytes(weight: QuantizedWeight) -> int:
    return (weight.codes.size + 1) // 2 if weight.bits <= INT4_BITS else weight.codes.size


def _placeholder(layer: Layer, recipe: Recipe, bias: bool) -> Candidate:
    """A candidate of the right shapes whose values no two constants share, so that all of it is stored."""
    numerics, shape, axis = recipe.weight, layer.weight_shape, layer.channel_axis
    codes = np.zeros(shape, dtype=np.int8)
    channels = shape[axis]
    if numerics.group_size is not None:
        rows = ceil(shape[1 - axis] / numerics.group_size)
        scale_shape: tuple[int, ...] = (channels, rows) if axis == 0 else (rows, channels)
    else:
        scale_shape = (channels,) if numerics.granularity is Granularity.CHANNEL else ()
    scale = (1 + np.arange(np.prod(scale_shape, dtype=np.int64), dtype=np.float32)).reshape(scale_shape)
    point = None if numerics.symmetric else np.zeros(scale_shape, dtype=np.int8)
    weight = QuantizedWeight(codes, scale.astype(np.float32), point, axis, numerics.bits, numerics.group_size)
    width = shape[1] if layer.kind is LayerKind.EMBEDDING else channels
    values = np.full(width, 0.5, dtype=np.float32) if bias else None
    name = f"w{numerics.bits}a{8 if recipe.activation else 16}"
    return Candidate(layer.name, Precision(name), recipe, weight, values, "none", 0.0, 0)
