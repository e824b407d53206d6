"""Constants, ranges and type changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.onnx_import.ops.table import Call, op, to_torch, torch_type


@op("Constant")
def constant(call: Call) -> Tensor:
    array = constant_array(call.node.attributes)
    tensor = None if array is None else to_torch(array, call.dtype)
    if tensor is None:
        raise call.unsupported(f"a constant of {', '.join(call.node.attributes)}")
    return tensor


def constant_array(attributes: Mapping[str, Any]) -> np.ndarray[Any, Any] | None:
    """The array of a Constant node in any of its attribute forms; None for strings and sparse tensors."""
    if (value := attributes.get("value")) is not None:
        return np.asarray(value)
    for name, kind in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if (value := attributes.get(name)) is not None:
            return np.asarray(value, dtype=kind)
    return None


@op("ConstantOfShape")
def constant_of_shape(call: Call) -> Tensor:
    fill = call.attribute("value")
    array = np.zeros(1, np.float32) if fill is None else np.asarray(fill)
    value = to_torch(array, call.dtype)
    if value is None:
        raise call.unsupported(f"a constant of type {array.dtype}")
    return value.reshape(()).expand(call.ints(0) or []).clone()


@op("Range")
def range_(call: Call) -> Tensor:
    start, limit, delta = (value.reshape(()) for value in (call[0], call[1], call[2]))
    if not start.is_floating_point():
        return torch.arange(int(start.item()), int(limit.item()), int(delta.item()), dtype=start.dtype)
    count = max(0, int(np.ceil((limit.item() - start.item()) / delta.item())))
    return torch.add(start, torch.arange(count, dtype=start.dtype, device=start.device) * delta)


_SUB_BYTE = {"uint4": 21, "int4": 22, "uint2": 25, "int2": 26}


def _wrapped(x: Tensor, element_type: int) -> Tensor:
    """A cast to 4 or 2 bits keeps the low bits, read with or without a sign."""
    bits = 4 if element_type in (21, 22) else 2
    low = x.to(torch.int64) & ((1 << bits) - 1)
    if element_type in (21, 25):
        return low.to(torch.uint8)
    sign = 1 << (bits - 1)
    return ((low ^ sign) - sign).to(torch.int8)


def cast_to(x: Tensor, kind: torch.dtype) -> Tensor:
    if kind is torch.bool:
        return x != 0
    return x.to(kind)


@op("Cast")
def cast(call: Call) -> Tensor:
    kind = torch_type(call.attribute("to"), call.dtype)
    if kind is None:
        raise call.unsupported(f"cast to ONNX type {call.attribute('to')}")
    if call.attribute("to") in _SUB_BYTE.values():
        return _wrapped(call[0], call.attribute("to"))
    return cast_to(call[0], kind)


@op("CastLike")
def cast_like(call: Call) -> Tensor:
    name = call.type_name(1)
    if name.startswith(("float8", "float4")):
        raise call.unsupported(f"cast to {name}")
    element_type = _SUB_BYTE.get(name)
    return cast_to(call[0], call[1].dtype) if element_type is None else _wrapped(call[0], element_type)


@op("EyeLike")
def eye_like(call: Call) -> Tensor:
    x = call[0]
    wanted = call.attribute("dtype")
    kind = x.dtype if wanted is None else torch_type(wanted, call.dtype)
    rows, columns, offset = x.shape[0], x.shape[1], call.attribute("k", 0)
    places = torch.arange(columns, device=x.device)[None, :] - torch.arange(rows, device=x.device)[:, None]
    eye: Tensor = (places == offset).to(kind)
    return eye
