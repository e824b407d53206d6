"""Bit plan: which layer got which bits, in a neutral, versioned JSON that other tools can build from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels.recipe import Granularity, Numerics, Recipe
from search.assembly import ActivationQuantizer, Assembly
from search.errors import BadSubmission
from search.graph import Graph

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PlannedTensor:
    """How one activation tensor is rounded; `scale` and `zero_point` are None where the runtime finds them itself."""

    tensor: str
    bits: int
    symmetric: bool
    signed: bool
    granularity: str
    dynamic: bool
    scale: float | None
    zero_point: int | None


@dataclass(frozen=True)
class PlannedLayer:
    """One layer's format. `weight` is the submitted model's initializer; `scale_shape` is that of its scales.

    Float layers have `precision` `fp32` and no other entries.
    """

    layer: str
    op_type: str
    node: str
    weight: str
    weight_shape: tuple[int, ...]
    precision: str
    weight_bits: int = 32
    symmetric: bool = True
    granularity: str | None = None
    group_size: int | None = None
    scale_shape: tuple[int, ...] | None = None
    channel_axis: int | None = None
    activation: PlannedTensor | None = None
    output: PlannedTensor | None = None


@dataclass(frozen=True)
class BitPlan:
    """The whole allocation of one model, named by the sha256 of the submitted file."""

    model_sha256: str
    runtime: str
    layers: tuple[PlannedLayer, ...]

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, "kind": "bit_plan", **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BitPlan:
        """The plan in `data`; raises `BadSubmission` (`bad_bit_plan`) naming what is wrong."""
        try:
            if data["kind"] != "bit_plan" or data["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"kind {data['kind']!r}, schema {data['schema_version']!r}")
            layers = tuple(_layer(entry) for entry in data["layers"])
            plan = cls(str(data["model_sha256"]), str(data["runtime"]), layers)
            names = [layer.layer for layer in layers]
            if len(set(names)) != len(names):
                raise ValueError("a layer is listed twice")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadSubmission(
                f"this is no bit plan of schema {SCHEMA_VERSION}: {error!r}",
                hint="take bit_plan.json from an artifact",
                code="bad_bit_plan",
            ) from error
        return plan

    @property
    def precisions(self) -> dict[str, str]:
        return {layer.layer: layer.precision for layer in self.layers}


def bit_plan(graph: Graph, assembly: Assembly, runtime: str) -> BitPlan:
    """The plan of an assembly, every layer of the graph listed."""
    layers = []
    for layer in graph.layers:
        node = graph.nodes[layer.node]
        where = {
            "layer": layer.name,
            "op_type": node.op_type,
            "node": node.name,
            "weight": layer.weight,
            "weight_shape": layer.weight_shape,
        }
        candidate = assembly.candidates.get(layer.name)
        if candidate is None:
            layers.append(PlannedLayer(precision="fp32", **where))  # type: ignore[arg-type]
            continue
        numerics = candidate.recipe.weight
        layers.append(
            PlannedLayer(
                **where,  # type: ignore[arg-type]
                precision=candidate.precision.name,
                weight_bits=numerics.bits,
                symmetric=candidate.weight.zero_point is None,
                granularity=numerics.granularity.value,
                group_size=candidate.weight.group_size,
                scale_shape=tuple(candidate.weight.scale.shape),
                channel_axis=candidate.weight.channel_axis,
                activation=_activation(candidate.recipe, layer.input, assembly.quantizers.get(layer.input)),
                output=(
                    _tensor(assembly.quantizers[layer.quantized_tensor])
                    if layer.quantized_tensor in assembly.output_quantized
                    else None
                ),
            )
        )
    return BitPlan(graph.sha256, runtime, tuple(layers))


def read_bit_plan(path: Path) -> BitPlan:
    """The plan in a file; raises `BadSubmission` (`bad_bit_plan`)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadSubmission(
            f"{path} is not readable JSON: {error}", hint="take bit_plan.json from an artifact", code="bad_bit_plan"
        ) from error
    return BitPlan.from_json(data)


def _activation(recipe: Recipe, tensor: str, quantizer: ActivationQuantizer | None) -> PlannedTensor | None:
    numerics = recipe.activation or recipe.internal_activation
    if numerics is None:
        return None
    if recipe.activation is not None and not numerics.dynamic and quantizer is not None:
        return _tensor(quantizer)
    return _planned(tensor, numerics, None, None)


def _tensor(quantizer: ActivationQuantizer) -> PlannedTensor:
    return _planned(quantizer.tensor, quantizer.numerics, float(quantizer.scale), int(quantizer.zero_point))


def _planned(tensor: str, numerics: Numerics, scale: float | None, zero_point: int | None) -> PlannedTensor:
    return PlannedTensor(
        tensor, numerics.bits, numerics.symmetric, numerics.signed, numerics.granularity.value, numerics.dynamic,
        scale, zero_point,
    )  # fmt: skip


def _layer(entry: Mapping[str, Any]) -> PlannedLayer:
    fields = dict(entry)
    for name in ("weight_shape", "scale_shape"):
        if fields.get(name) is not None:
            fields[name] = tuple(int(size) for size in fields[name])
    for name in ("activation", "output"):
        if fields.get(name) is not None:
            fields[name] = PlannedTensor(**fields[name])
            Granularity(fields[name].granularity)
    planned = PlannedLayer(**fields)
    if not 1 <= int(planned.weight_bits) <= 32:
        raise ValueError(f"layer {planned.layer!r} has {planned.weight_bits}-bit weights")
    if planned.granularity is not None:
        Granularity(planned.granularity)
    return planned
