"""A model small enough to know exactly: a sum of linear branches, each a layer, in numpy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx

from kernels.precision import Precision
from kernels.recipe import Granularity, Numerics, Recipe
from search.assembly import Assembly, Candidate, QuantizedWeight
from search.candidates.candidate_set import CandidateSet
from search.graph import Graph, Layer, LayerKind, Node, TensorInfo
from search.groups import LayerGroup, group_layers

FEATURES, CLASSES = 6, 5


@dataclass
class Branches:
    """logits = gain · Σ_l x W_l: what layers do to the output adds up, so nothing but the loss is nonlinear."""

    graph: Graph
    weights: dict[str, np.ndarray]
    gain: float = 1.0
    built: list[tuple[tuple[str, str], ...]] = field(default_factory=list)
    fail_after: int | None = None
    is_differentiable = False

    def run(self, inputs, assembly=None, keep=()):  # type: ignore[no-untyped-def]
        return next(iter(self.perturb(inputs, [assembly or Assembly({}, {})])))

    def perturb(self, inputs, assemblies: Iterable[Assembly]) -> Iterator[dict[str, np.ndarray]]:  # type: ignore[no-untyped-def]
        for assembly in assemblies:
            if assembly.candidates:
                if self.fail_after is not None and len(self.built) >= self.fail_after:
                    raise KeyboardInterrupt
                self.built.append(tuple((name, c.precision.name) for name, c in assembly.candidates.items()))
            total = np.zeros((len(inputs["x"]), CLASSES))
            for name, weight in self.weights.items():
                candidate = assembly.candidates.get(name)
                total += inputs["x"] @ (weight if candidate is None else candidate.weight.dequantize())
            yield {"y": (self.gain * total).astype(np.float32)}


@dataclass
class Toy:
    simulator: Branches
    groups: tuple[LayerGroup, ...]
    candidates: CandidateSet
    inputs: np.ndarray

    def chunks(self, size: int) -> list[dict[str, np.ndarray]]:
        return [{"x": self.inputs[i : i + size]} for i in range(0, len(self.inputs), size)]


def weight_only(bits: int) -> tuple[Precision, Recipe]:
    numerics = Numerics(bits, symmetric=True, signed=True, granularity=Granularity.CHANNEL)
    return Precision(f"w{bits}a16"), Recipe(f"w{bits}", numerics, None, False)


def rounded(layer: str, weight: np.ndarray, bits: int) -> Candidate:
    scale = np.abs(weight).max(0) / (2 ** (bits - 1) - 1)
    codes = np.clip(np.round(weight / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int8)
    precision, recipe = weight_only(bits)
    quantized = QuantizedWeight(codes, scale.astype(np.float32), None, 1, bits)
    return Candidate(layer, precision, recipe, quantized, None, "min_max", 0.0, weight.size * bits // 8)


def build(
    samples: int = 160, layers: int = 4, bits: tuple[int, ...] = (8, 4, 3), tie: bool = False, seed: int = 0
) -> Toy:
    rng = np.random.default_rng(seed)
    weights = {f"l{i}": rng.normal(size=(FEATURES, CLASSES)).astype(np.float32) for i in range(layers)}
    nodes, described = [], []
    for i, name in enumerate(weights):
        nodes.append(Node(i, name, "MatMul", "", ("x", f"{name}.w"), (f"{name}.y",), {}))
        described.append(
            Layer(
                name=name, kind=LayerKind.LINEAR, node=i, weight=f"{name}.w", weight_position=1,
                weight_shape=(FEATURES, CLASSES), channel_axis=1, input="x", input_position=0, bias=None,
                output=f"{name}.y", tie="shared" if tie and i < 2 else None,
            )
        )  # fmt: skip
    graph = Graph(
        model=onnx.ModelProto(), sha256="toy", content_hash="toy", opset=17,
        inputs=(TensorInfo("x", np.dtype(np.float32), ("n", FEATURES)),),
        outputs=(TensorInfo("y", np.dtype(np.float32), ("n", CLASSES)),),
        nodes=tuple(nodes), constants={f"{n}.w": w for n, w in weights.items()}, layers=tuple(described),
    )  # fmt: skip
    candidates = {(name, f"w{b}a16"): rounded(name, weight, b) for name, weight in weights.items() for b in bits}
    inputs = rng.normal(size=(samples, FEATURES)).astype(np.float32)
    return Toy(Branches(graph, weights), group_layers(graph), CandidateSet(candidates, {}), inputs)
