"""OnnxRuntimeSimulator: any graph ONNX Runtime can run, with any assembly's quantization, forwards only.

The assembly is written as the exporter writes it, plus what kernels do inside, and run with every optimization off:
the quantize/dequantize arithmetic exactly as the file states it, on ops that the torch program does not know.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from search.artifact.qdq import export_simulation, quantized_input_name
from search.assembly import Assembly
from search.errors import BadSubmission
from search.graph import Graph
from search.simulation.fixed_batch import joined, pieces
from search.simulation.simulator import Arrays

_ERROR_LEVEL = 3
# Weights of this size and more are held once and lent to every session.
_LENT_BYTES = 4096
_UNQUANTIZED = Assembly({}, {})


@dataclass(frozen=True)
class _Prepared:
    """One assembly's session; `assembly` is held so that its identity stays unique while cached."""

    assembly: Assembly
    session: onnxruntime.InferenceSession


class OnnxRuntimeSimulator:
    """A `search.simulation.simulator.Simulator` over ONNX Runtime sessions, one per assembly and set of kept tensors.

    Sessions share the submitted weights, so each costs little more than the layers it changes; the `sessions` used
    last stay open. Not differentiable and without prefix sharing: every run starts at the inputs. A fixed-batch graph
    is run in pieces of that batch, as `TorchSimulator` does.
    """

    def __init__(self, graph: Graph, *, threads: int = 1, sessions: int = 64) -> None:
        self.graph = graph
        self._threads = threads
        self._limit = max(1, sessions)
        self._lent: dict[str, onnxruntime.OrtValue] = {}
        self._light = replace(graph, model=self._lend_weights(graph.model))
        self._open: OrderedDict[tuple[int, tuple[str, ...]], _Prepared] = OrderedDict()

    @property
    def is_differentiable(self) -> bool:
        return False

    def run(
        self, inputs: Arrays, assembly: Assembly | None = None, keep: Iterable[str] = ()
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Graph outputs, and the tensors named in `keep`, for one chunk of samples.

        Raises `BadSubmission` (`tensor_not_in_model`) for a kept name that the graph does not compute.
        """
        assembly = _UNQUANTIZED if assembly is None else assembly
        outputs = [info.name for info in self.graph.outputs]
        given = {name: self._source(name, assembly) for name in keep if name not in outputs}
        computed = sorted({source for source in given.values() if source is not None})
        session = self._session(assembly, tuple(computed))
        wanted = [*outputs, *computed]
        parts = [
            (dict(zip(wanted, session.run(wanted, piece), strict=True)), real)
            for piece, real in pieces(self._feed(inputs), self.graph.fixed_batch)
        ]
        found = joined(parts, self.graph.fixed_batch)
        kept = {
            name: found[source] if source is not None else np.asarray(inputs.get(name, self.graph.constants.get(name)))
            for name, source in given.items()
        }
        return {**{name: found[name] for name in outputs}, **kept}

    def perturb(self, inputs: Arrays, assemblies: Iterable[Assembly]) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Graph outputs of each assembly in turn, for one chunk."""
        for assembly in assemblies:
            yield self.run(inputs, assembly)

    def _source(self, name: str, assembly: Assembly) -> str | None:
        """The tensor of the written model that holds `name`; None for an input or constant that is as given."""
        if any(info.name == name for info in self.graph.inputs):
            return quantized_input_name(name) if name in assembly.output_quantized else None
        if name in self.graph.constants:
            return None
        if not any(name in node.outputs for node in self.graph.nodes):
            raise BadSubmission(
                f"the graph computes no tensor {name!r}",
                hint="names are those of the submitted model",
                code="tensor_not_in_model",
            )
        return name

    def _feed(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        missing = [info.name for info in self.graph.inputs if info.name not in inputs]
        if missing:
            raise BadSubmission(
                f"no values for model inputs {', '.join(missing)}",
                hint="name arrays after inputs",
                code="input_missing",
            )
        return {info.name: np.asarray(inputs[info.name]).astype(info.dtype, copy=False) for info in self.graph.inputs}

    def _session(self, assembly: Assembly, keep: tuple[str, ...]) -> onnxruntime.InferenceSession:
        key = (id(assembly), keep)
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key].session
        session = self._start(export_simulation(self._light, assembly), keep)
        self._open[key] = _Prepared(assembly, session)
        while len(self._open) > self._limit:
            self._open.popitem(last=False)
        return session

    def _start(self, model: onnx.ModelProto, keep: tuple[str, ...]) -> onnxruntime.InferenceSession:
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in keep)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERROR_LEVEL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Packed copies of weights would cost memory per session.
        options.add_session_config_entry("session.disable_prepacking", "1")
        used = [tensor.name for tensor in model.graph.initializer if tensor.name in self._lent]
        if used:
            options.add_external_initializers(used, [self._lent[name] for name in used])
        try:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exception classes are private and differ between releases
            raise BadSubmission(
                f"ONNX Runtime {onnxruntime.__version__} cannot run the model: {error}",
                hint="the model must run in ONNX Runtime on a CPU",
                code="model_unloadable",
            ) from error

    def _lend_weights(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model with its large initializers named but not held; sessions get them from `_lent`."""
        light = onnx.ModelProto()
        light.CopyFrom(model)
        for tensor in light.graph.initializer:
            if len(tensor.raw_data) < _LENT_BYTES or tensor.data_type != onnx.TensorProto.FLOAT:
                continue
            value = np.ascontiguousarray(numpy_helper.to_array(tensor))
            self._lent[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(value)
            length = len(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, text in (("location", "lent"), ("offset", "0"), ("length", str(length))):
                tensor.external_data.add(key=key, value=text)
        return light
