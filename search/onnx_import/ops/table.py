"""Op table: maps an ONNX op type to the torch function that computes it, for every opset the importer reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.errors import UnsupportedOp
from search.graph import Node

# ONNX TensorProto.DataType → torch. Half and bfloat16 are computed in the program's own float type; torch has no
# arithmetic for unsigned 16, 32 and 64 bit, so they are computed in the next wider signed type.
_INTEGER_TYPES: dict[int, torch.dtype] = {
    2: torch.uint8,
    3: torch.int8,
    4: torch.int32,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    12: torch.int64,
    13: torch.int64,
    21: torch.uint8,
    22: torch.int8,
    25: torch.uint8,
    26: torch.int8,
}
_FLOAT_TYPES = frozenset({1, 10, 11, 16})
_UNSIGNED_WIDER = {
    "uint16": np.int32,
    "uint32": np.int64,
    "uint64": np.int64,
    "int4": np.int8,
    "uint4": np.uint8,
    "int2": np.int8,
    "uint2": np.uint8,
}


@dataclass(frozen=True)
class Call:
    """One execution of a node: its inputs (None where optional and absent), the opset, and the float type."""

    node: Node
    inputs: tuple[Tensor | None, ...]
    opset: int
    dtype: torch.dtype
    type_names: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, position: int) -> Tensor:
        """A required input; raises `UnsupportedOp` when the node has none there."""
        value = self.optional(position)
        if value is None:
            raise self.unsupported(f"input {position} is missing")
        return value

    def optional(self, position: int) -> Tensor | None:
        return self.inputs[position] if position < len(self.inputs) else None

    def type_name(self, position: int) -> str:
        """The ONNX type of an input where the file tells it (`int4` is computed as int8), else its torch type."""
        name = self.node.inputs[position]
        return self.type_names.get(name) or str(self[position].dtype).removeprefix("torch.")

    def present(self) -> list[Tensor]:
        """All inputs that are there, moved to one device."""
        return list(aligned(*(value for value in self.inputs if value is not None)))

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.node.attributes.get(name, default)

    def ints(self, position: int) -> list[int] | None:
        """The values of an integer input as Python ints, None when absent."""
        value = self.optional(position)
        return None if value is None else [int(item) for item in value.reshape(-1).tolist()]

    def ints_or_attribute(self, position: int, name: str) -> list[int] | None:
        """Axes, pads and the like: an input in newer opsets, an attribute in older ones."""
        found = self.ints(position)
        if found is None and name in self.node.attributes:
            found = [int(item) for item in self.node.attributes[name]]
        return found

    def unsupported(self, why: str) -> UnsupportedOp:
        return UnsupportedOp(
            f"node {self.node.name!r} ({self.node.op_type}): {why}",
            hint="metrics that need gradients cannot run on this model; gauss_newton and kl can",
        )


Result = Tensor | tuple[Tensor | None, ...]
Op = Callable[[Call], Result]
OPS: dict[str, Op] = {}


def op(*names: str) -> Callable[[Op], Op]:
    """Register a function as the implementation of ONNX op types."""

    def register(function: Op) -> Op:
        for name in names:
            assert name not in OPS, name
            OPS[name] = function
        return function

    return register


def torch_type(element_type: int, dtype: torch.dtype) -> torch.dtype | None:
    """The torch type an ONNX element type is computed in; None for strings, complex and 8-bit floats."""
    return dtype if element_type in _FLOAT_TYPES else _INTEGER_TYPES.get(element_type)


def to_torch(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor | None:
    """An array as the program computes it (floats in `dtype`); None when torch has no such type.

    The tensor owns its memory: nothing the program does reaches the array.
    """
    name = array.dtype.name
    if name in _UNSIGNED_WIDER:
        array = array.astype(_UNSIGNED_WIDER[name])
    elif name == "bfloat16" or name.startswith(("float8", "float4")):
        array = array.astype(np.float32)
    if array.dtype.kind == "f":
        return torch.tensor(array).to(dtype)
    return torch.tensor(array) if array.dtype.kind in "iub" else None


def aligned(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors on one device: integers and masks wait on the CPU, so they follow whoever is elsewhere."""
    device = next((t.device for t in tensors if t.device.type != "cpu"), None)
    return tensors if device is None else tuple(t.to(device) for t in tensors)


def is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def positive_axis(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def normalized_axes(axes: Sequence[int], rank: int) -> list[int]:
    return [positive_axis(int(axis), rank) for axis in axes]
