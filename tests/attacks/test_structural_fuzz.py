"""Seeded structural mutations of valid one-op models: only our own errors ever come out.

Random bytes die in the protobuf parser, so structure is mutated: attributes, wiring, op types, shapes, element types,
opsets. The address space is limited meanwhile, so that a mutant asking for terabytes fails instead of thrashing.
"""

from __future__ import annotations

import random
import resource
import warnings
from collections import Counter
from collections.abc import Iterator
from math import prod

import numpy as np
import onnx
import pytest
import torch
from hostile_models import healthy
from onnx import AttributeProto, helper

from benchmarks.backend_node_cases import NodeCase, listed_cases
from search.errors import SearchError
from search.onnx_import import Limits, Program, graph_from_model
from search.onnx_import.ops import OPS
from search.onnx_import.ops.table import to_torch

MUTANTS_PER_SHARD = 500
SPARE_BYTES = 3 << 30
LIMITS = Limits(tensor_bytes=1 << 26, parameters=1 << 24)
INTS = (-(2**63), -(2**50), -7, -1, 0, 1, 2, 3, 5, 64, 2**31, 2**50, 2**63 - 1)
FLOATS = (0.0, -1.0, 1e-30, 1e30, float("inf"), float("nan"))


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def mutate(model: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    mutant = onnx.ModelProto()
    mutant.CopyFrom(model)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice((_attribute, _attribute, _new_attribute, _wiring, _op_type, _input_shape, _initializer, _opset))(
            mutant, rng
        )
    return mutant


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    attributes = [a for node in model.graph.node for a in node.attribute]
    if not attributes:
        return
    attribute = rng.choice(attributes)
    match attribute.type:
        case AttributeProto.INT:
            attribute.i = rng.choice(INTS)
        case AttributeProto.INTS:
            values = list(attribute.ints)
            if values and rng.random() < 0.7:
                values[rng.randrange(len(values))] = rng.choice(INTS)
            else:
                values = values[:-1] if rng.random() < 0.5 else [*values, rng.choice(INTS)]
            del attribute.ints[:]
            attribute.ints.extend(values)
        case AttributeProto.FLOAT:
            attribute.f = rng.choice(FLOATS)
        case AttributeProto.STRING:
            attribute.s = rng.choice((b"", b"\xff\xfe", b"linear", b"reflect", b"SAME_UPPER"))
        case AttributeProto.TENSOR:
            attribute.t.dims.append(rng.choice((0, 1, 2, 2**40)))


def _new_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    schema = onnx.defs.get_schema(node.op_type)
    names = sorted(schema.attributes)
    if not names:
        return
    kind = schema.attributes[rng.choice(names)]
    values = {
        onnx.defs.OpSchema.AttrType.INT: rng.choice(INTS),
        onnx.defs.OpSchema.AttrType.INTS: [rng.choice(INTS) for _ in range(rng.randrange(5))],
        onnx.defs.OpSchema.AttrType.FLOAT: rng.choice(FLOATS),
        onnx.defs.OpSchema.AttrType.STRING: rng.choice(("", "cubic", "wrap", "VALID")),
    }
    if kind.type in values and all(a.name != kind.name for a in node.attribute):
        attribute_type = AttributeProto.INTS if kind.type == onnx.defs.OpSchema.AttrType.INTS else None
        node.attribute.append(helper.make_attribute(kind.name, values[kind.type], attr_type=attribute_type))


def _wiring(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    names = [info.name for info in model.graph.input] + [t.name for t in model.graph.initializer] + [""]
    inputs = list(node.input)
    action = rng.randrange(3)
    if action == 0 and inputs:
        inputs[rng.randrange(len(inputs))] = rng.choice(names)
    elif action == 1 and inputs:
        inputs.pop()
    else:
        inputs.append(rng.choice(names))
    del node.input[:]
    node.input.extend(inputs)


def _op_type(model: onnx.ModelProto, rng: random.Random) -> None:
    rng.choice(model.graph.node).op_type = rng.choice(sorted(OPS))


def _input_shape(model: onnx.ModelProto, rng: random.Random) -> None:
    if not model.graph.input:
        return
    kind = rng.choice(model.graph.input).type.tensor_type
    action = rng.randrange(4)
    if action == 0:
        kind.elem_type = rng.choice((1, 2, 3, 6, 7, 9, 10, 11, 8, 16, 22, 99))
    elif action == 1:
        kind.ClearField("shape")
    elif kind.shape.dim and action == 2:
        rng.choice(kind.shape.dim).dim_value = rng.choice((-1, 0, 1, 2, 7, 2**62))
    else:
        kind.shape.dim.add().dim_value = rng.choice((0, 1, 2))


def _initializer(model: onnx.ModelProto, rng: random.Random) -> None:
    if not model.graph.initializer:
        return
    tensor = rng.choice(model.graph.initializer)
    action = rng.randrange(3)
    if action == 0:
        tensor.dims.append(rng.choice((-1, 0, 1, 2, 2**33)))
    elif action == 1:
        tensor.data_type = rng.randrange(30)
    else:
        tensor.raw_data = tensor.raw_data[:-1]


def _opset(model: onnx.ModelProto, rng: random.Random) -> None:
    model.opset_import[0].version = rng.randrange(1, onnx.defs.onnx_opset_version() + 2)


def fate(model: onnx.ModelProto) -> str:
    """What becomes of a mutant: the code of the error it gets, or `ran`."""
    try:
        graph = graph_from_model(model, limits=LIMITS)
        program = Program(graph)
        inputs = {}
        for info in graph.inputs:
            shape = [size if isinstance(size, int) else 2 for size in info.shape]
            if prod(shape) > 1 << 20 or min(shape, default=0) < 0:
                return "no inputs"
            tensor = to_torch(np.ones(shape, info.dtype), torch.float32)
            if tensor is None:
                return "no inputs"
            inputs[info.name] = tensor
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of empty kernels and the like before it refuses them
            program.run(inputs)
    except SearchError as error:
        return error.code
    return "ran"


@pytest.mark.parametrize("shard", range(3))
def test_only_our_own_errors_come_out(shard: int) -> None:
    rng = random.Random(shard)
    sources: list[NodeCase] = [case for case in listed_cases() if len(case.model.graph.node) <= 12]
    fates: Counter[str] = Counter()
    for _ in range(MUTANTS_PER_SHARD):
        source = rng.choice(sources).model if rng.random() < 0.95 else healthy()
        mutant = mutate(source, rng)
        try:
            fates[fate(mutant)] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\n{mutant}") from error
    # The mutations must reach past the door, or this test shows nothing.
    assert fates["ran"] > MUTANTS_PER_SHARD // 10
    assert fates["model_rejected"] > MUTANTS_PER_SHARD // 10
