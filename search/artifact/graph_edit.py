"""GraphEdit: a working copy of an ONNX model in which nodes and constants are replaced while names survive."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from search.artifact.opset import raise_opset
from search.errors import BadSubmission

_STANDARD_DOMAINS = ("", "ai.onnx")


def pack_int4(codes: np.ndarray[Any, Any]) -> bytes:
    """Codes in [-8, 7] as ONNX stores INT4: row-major, two to a byte, the first in the low nibble."""
    flat = codes.astype(np.uint8).reshape(-1) & 0xF
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return np.asarray(flat[0::2] | (flat[1::2] << 4), dtype=np.uint8).tobytes()


class GraphEdit:
    """Edits a private copy of `model`; `finish` gives the result. The submitted model is never touched.

    New nodes may be added in any order: `finish` sorts topologically, keeping the submitted order where it can, so
    that equal edits give equal bytes.
    """

    def __init__(self, model: onnx.ModelProto, minimum_opset: int) -> None:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        self.model = raise_opset(strip_metadata(copy), minimum_opset)
        graph = self.model.graph
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self._by_output: dict[str, onnx.NodeProto] = {name: node for node in self.nodes for name in node.output if name}
        self._submitted: dict[str, onnx.NodeProto] = dict(self._by_output)
        self._once: dict[tuple[str, str], tuple[str, ...]] = {}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._shared: dict[bytes, str] = {}
        self._removed: set[int] = set()
        self._names = set(self._by_output) | set(self._initializers) | {value.name for value in graph.input}
        self._names.update(name for node in self.nodes for name in _captured(node))

    def submitted(self, tensor: str) -> onnx.NodeProto:
        """The node that wrote `tensor` in the submitted model, whatever it is called by now.

        Raises `BadSubmission` (`tensor_not_in_model`).
        """
        try:
            return self._submitted[tensor]
        except KeyError:
            raise BadSubmission(
                f"no node of the model writes tensor {tensor!r}",
                hint="the graph and its model differ; import the model again",
                code="tensor_not_in_model",
            ) from None

    def has_producer(self, tensor: str) -> bool:
        return tensor in self._by_output

    def fresh(self, name: str) -> str:
        """`name`, or `name.2`, … when the model already uses it; reserved from now on."""
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}.{count}"
        self._names.add(candidate)
        return candidate

    def constant(self, name: str, value: np.ndarray[Any, Any], *, int4: bool = False, share: bool = True) -> str:
        """The name of an initializer holding `value`; equal new ones share one unless `share` is False."""
        if int4:
            tensor = helper.make_tensor(name, TensorProto.INT4, value.shape, pack_int4(value), raw=True)
        else:
            tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        header = f"{tensor.data_type}:{','.join(map(str, value.shape))}:".encode()
        key = hashlib.sha256(header + tensor.raw_data).digest()
        if share and key in self._shared:
            return self._shared[key]
        tensor.name = self.fresh(name)
        self._initializers[tensor.name] = tensor
        if share:
            self._shared[key] = tensor.name
        return str(tensor.name)

    def add(self, op_type: str, inputs: Iterable[str], outputs: Iterable[str], **attributes: Any) -> onnx.NodeProto:
        """Append a node. It has no name of its own: runtimes name it after its output, and the bytes are saved."""
        outputs = list(outputs)
        node = helper.make_node(op_type, list(inputs), outputs, **attributes)
        self.nodes.append(node)
        self._by_output.update((name, node) for name in outputs if name)
        return node

    def once(self, op_type: str, source: str, outputs: Iterable[str], **attributes: Any) -> tuple[str, ...]:
        """The outputs of the one `op_type` of `source` that all who ask share, added when first asked for."""
        key = (op_type, source)
        if key not in self._once:
            self._once[key] = tuple(self.fresh(name) for name in outputs)
            self.add(op_type, [source], self._once[key], **attributes)
        return self._once[key]

    def remove(self, node: onnx.NodeProto) -> None:
        self._removed.add(id(node))
        for name in node.output:
            if self._by_output.get(name) is node:
                del self._by_output[name]

    def rename_output(self, node: onnx.NodeProto, old: str, new: str) -> None:
        """Let `node` write `new` where it wrote `old`; readers are not changed."""
        position = list(node.output).index(old)
        node.output[position] = new
        if self._by_output.get(old) is node:
            del self._by_output[old]
        self._by_output[new] = node

    def readers(self, tensor: str) -> list[tuple[onnx.NodeProto, int]]:
        """(node, input position) of every direct reader in the main graph."""
        return [
            (node, position)
            for node in self.nodes
            if id(node) not in self._removed
            for position, name in enumerate(node.input)
            if name == tensor
        ]

    def finish(self) -> onnx.ModelProto:
        """The edited model: dead nodes and unused initializers gone, nodes in topological order."""
        graph = self.model.graph
        nodes = self._sorted(self._alive())
        used = {name for node in nodes for name in (*node.input, *_captured(node))}
        used.update(value.name for value in graph.output)
        initializers = [tensor for name, tensor in self._initializers.items() if name in used]
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.initializer[:]
        graph.initializer.extend(initializers)
        inputs = [value for value in graph.input if value.name not in self._initializers]
        del graph.input[:]
        graph.input.extend(inputs)
        produced = {name for node in nodes for name in node.output}
        infos = [value for value in graph.value_info if value.name in produced]
        del graph.value_info[:]
        graph.value_info.extend(infos)
        return self.model

    def _alive(self) -> list[onnx.NodeProto]:
        wanted = [value.name for value in self.model.graph.output]
        alive: set[int] = set()
        while wanted:
            node = self._by_output.get(wanted.pop())
            if node is not None and id(node) not in alive:
                alive.add(id(node))
                wanted.extend((*node.input, *_captured(node)))
        return [node for node in self.nodes if id(node) in alive]

    def _sorted(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        done: set[int] = set()
        order: list[onnx.NodeProto] = []
        for root in nodes:
            stack = [root]
            while stack:
                node = stack[-1]
                if id(node) in done:
                    stack.pop()
                    continue
                needed = (self._by_output.get(name) for name in (*node.input, *_captured(node)) if name)
                waiting = [other for other in needed if other is not None and id(other) not in done]
                if waiting:
                    stack.extend(reversed(waiting))
                else:
                    done.add(id(node))
                    order.append(node)
                    stack.pop()
        return order


def strip_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove, in place, what no runtime computes with: producer, doc strings, metadata and inferred shapes.

    Inferred shapes stay when the model has ops of other domains, whose shapes a runtime may not infer.
    """
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"):
        model.ClearField(field)
    _strip_graph(model.graph)
    if all(node.domain in _STANDARD_DOMAINS for node in model.graph.node):
        del model.graph.value_info[:]
    return model


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    graph.ClearField("quantization_annotation")
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    for node in graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        for inner in _inner_graphs(node):
            _strip_graph(inner)


def _inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _captured(node: onnx.NodeProto) -> set[str]:
    """Names that subgraphs of a node read; those of the outer graph are among them."""
    names: set[str] = set()
    for graph in _inner_graphs(node):
        names.update(value.name for value in graph.output)
        for inner in graph.node:
            names.update(inner.input)
            names.update(_captured(inner))
    return names
