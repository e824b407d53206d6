"""Program: an ONNX graph as differentiable torch computation, with hooks on what is read and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from search.errors import BadSubmission, SearchError, UnsupportedOp
from search.graph import Graph, Node
from search.onnx_import.ops import OPS
from search.onnx_import.ops.table import Call, Op, to_torch

Read = Tensor | Callable[[Tensor], Tensor]
Write = Callable[[Tensor], Tensor]


class Program:
    """Computes a graph node by node in topological order; every result has first and second derivatives.

    Float tensors of any width are computed in `dtype`, integers exactly. Constants live on `device`, are buffers (no
    gradient) and are shared between runs: a hook must return a new tensor, never change the one it got. Nodes that
    depend on constants alone are computed once, when the program is made, except layers.

    Raises `UnsupportedOp` naming every op the table lacks. A program has no batch size of its own: what a
    fixed-batch export allows is up to its caller, who feeds chunks of `graph.fixed_batch` samples.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        missing = Counter(node.op_type for node in graph.nodes if node.op_type not in OPS or node.domain)
        if missing:
            named = ", ".join(f"{op_type} (×{count})" for op_type, count in sorted(missing.items()))
            raise UnsupportedOp(
                f"no differentiable form of {named}",
                hint="metrics that need gradients cannot run on this model; gauss_newton and kl can",
            )
        self.graph = graph
        self.dtype = dtype
        self.device = torch.device(device)
        self._type_names = {name: array.dtype.name for name, array in graph.constants.items()}
        self._type_names.update((info.name, info.dtype.name) for info in graph.inputs)
        self._ops: tuple[Op, ...] = tuple(OPS[node.op_type] for node in graph.nodes)
        self._outputs = tuple(info.name for info in graph.outputs)
        self._constants: dict[str, Tensor] = {}
        for name, array in graph.constants.items():
            tensor = to_torch(array, dtype)
            if tensor is not None:
                self._constants[name] = tensor.to(self.device) if tensor.is_floating_point() else tensor
        self._folded: frozenset[int] = frozenset()
        self._fold()
        self._last_use, self._dying = self._lifetimes()

    def constant(self, name: str) -> Tensor:
        """The value of an initializer, a Constant node, or anything computed from them alone."""
        return self._constants[name]

    def is_folded(self, index: int) -> bool:
        """Whether a node depends on constants alone and was computed when the program was made."""
        return index in self._folded

    def compute(self, index: int, arguments: list[Tensor | None]) -> tuple[Tensor | None, ...]:
        """What one node computes of given inputs, for callers that walk the graph themselves."""
        return self._compute(index, arguments)

    def use_channels_last(self) -> None:
        """Store four-dimensional constants channels-last, as convolutions on a GPU want them."""
        for name, tensor in self._constants.items():
            if tensor.ndim == 4 and tensor.is_floating_point():
                self._constants[name] = tensor.contiguous(memory_format=torch.channels_last)

    def run(
        self,
        inputs: Mapping[str, Tensor],
        *,
        reads: Mapping[tuple[int, int], Read] | None = None,
        writes: Mapping[str, Write] | None = None,
        keep: Iterable[str] = (),
        start: int = 0,
        env: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Graph outputs and the tensors named in `keep`, from nodes `start` on.

        `reads[(node, position)]` replaces (tensor) or transforms (callable) what that one input of that node reads.
        `writes[tensor]` transforms a tensor as it is produced, for all its readers; graph inputs and constants
        count as produced at the start. With `start > 0`, `env` holds what earlier nodes computed (at least
        `live_after(start)`), taken as it is: no write hook is applied to it again.
        Raises `BadSubmission` when a node cannot compute what it is given.
        """
        writes = writes or {}
        by_node: dict[int, list[tuple[int, Read]]] = {}
        for (index, position), read in (reads or {}).items():
            by_node.setdefault(index, []).append((position, read))
        kept = {*keep, *self._outputs}
        values: dict[str, Tensor] = dict(env or {})
        for name, tensor in inputs.items():
            if name not in values:
                given = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
                values[name] = writes[name](given) if name in writes else given
        if start == 0:
            self._check_inputs(values)
        self._refold(values, by_node, writes)
        for index in range(start, len(self.graph.nodes)):
            if index not in self._folded:
                self._step(index, values, by_node.get(index, ()), writes)
            for name in self._dying[index]:
                if name not in kept:
                    values.pop(name, None)
        result: dict[str, Tensor] = {}
        for name in kept:
            found = values.get(name, self._constants.get(name))
            if found is None:
                raise KeyError(f"tensor {name!r} is not computed from node {start} on")
            result[name] = found
        return result

    def live_after(self, node: int) -> frozenset[str]:
        """Tensors computed before `node` (graph inputs included) that it or a later node reads, or that are outputs."""
        before = {info.name for info in self.graph.inputs}
        before.update(name for earlier in self.graph.nodes[:node] for name in earlier.outputs if name)
        needed = {name for name in before if self._last_use.get(name, -1) >= node} | (before & set(self._outputs))
        return frozenset(needed - self._constants.keys())

    def _check_inputs(self, values: Mapping[str, Tensor]) -> None:
        missing = [info.name for info in self.graph.inputs if info.name not in values]
        if missing:
            raise BadSubmission(
                f"no values for model input(s) {', '.join(missing)}",
                hint=f"the model reads {', '.join(info.name for info in self.graph.inputs)}",
                code="input_missing",
            )

    def _step(
        self, index: int, values: dict[str, Tensor], reads: Iterable[tuple[int, Read]], writes: Mapping[str, Write]
    ) -> None:
        node = self.graph.nodes[index]
        arguments = [self._value(name, values, node) for name in node.inputs]
        for position, read in reads:
            arguments.extend([None] * (position + 1 - len(arguments)))
            if isinstance(read, Tensor):
                arguments[position] = read
            else:
                current = arguments[position]
                if current is None:
                    raise KeyError(f"node {node.name!r} reads nothing at position {position} to transform")
                arguments[position] = read(current)
        for name, tensor in zip(node.outputs, self._compute(index, arguments), strict=False):
            if name and tensor is not None:
                values[name] = writes[name](tensor) if name in writes else tensor

    def _value(self, name: str, values: Mapping[str, Tensor], node: Node) -> Tensor | None:
        if not name:
            return None
        found = values.get(name, self._constants.get(name))
        if found is None:
            raise UnsupportedOp(
                f"node {node.name!r} ({node.op_type}) reads {name!r}, which has no value that can be computed here",
                hint="metrics that need gradients cannot run on this model; gauss_newton and kl can",
            )
        return found

    def _compute(self, index: int, arguments: list[Tensor | None]) -> tuple[Tensor | None, ...]:
        node = self.graph.nodes[index]
        call = Call(node, tuple(arguments), self.graph.opset, self.dtype, self._type_names)
        try:
            result = self._ops[index](call)
        except (SearchError, torch.OutOfMemoryError):
            raise
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            shapes = ", ".join("–" if value is None else str(tuple(value.shape)) for value in arguments)
            raise BadSubmission(
                f"node {node.name!r} ({node.op_type}) cannot compute inputs of shapes {shapes}: {error}",
                hint="check the shapes and types of the inputs against the model's own",
                code="model_rejected",
            ) from error
        results = result if isinstance(result, tuple) else (result,)
        wanted = [name for name in node.outputs[len(results) :] if name]
        if wanted:
            raise call.unsupported(f"output(s) {', '.join(wanted)} are not computed")
        return results

    def _fold(self) -> None:
        """Compute what depends on constants alone. Layers stay: their weight input may be replaced in any run."""
        layers = {layer.node for layer in self.graph.layers}
        folded = set()
        with torch.no_grad():
            for index, node in enumerate(self.graph.nodes):
                if index not in layers and all(not name or name in self._constants for name in node.inputs):
                    self._step(index, self._constants, (), {})
                    folded.add(index)
        self._folded = frozenset(folded)

    def _refold(
        self, values: dict[str, Tensor], reads: Mapping[int, list[tuple[int, Read]]], writes: Mapping[str, Write]
    ) -> None:
        """Compute again, into `values`, the folded nodes that hooks of this run reach."""
        produced = {name for index in self._folded for name in self.graph.nodes[index].outputs}
        changed = {name for name in writes if name in self._constants and name not in values}
        for name in changed - produced:
            values[name] = writes[name](self._constants[name])
        if not changed and not any(index in self._folded for index in reads):
            return
        for index in sorted(self._folded):
            node = self.graph.nodes[index]
            if index in reads or changed.intersection(node.inputs) or changed.intersection(node.outputs):
                self._step(index, values, reads.get(index, ()), writes)
                changed.update(node.outputs)

    def _lifetimes(self) -> tuple[dict[str, int], tuple[tuple[str, ...], ...]]:
        last_use: dict[str, int] = {}
        for index, node in enumerate(self.graph.nodes):
            if index not in self._folded:
                last_use.update({name: index for name in node.inputs if name})
                for name in node.outputs:
                    last_use.setdefault(name, index)
        dying: list[list[str]] = [[] for _ in self.graph.nodes]
        for name, index in last_use.items():
            dying[index].append(name)
        return last_use, tuple(tuple(names) for names in dying)
