"""Shapes: reading them, changing them, and moving elements without computing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from search.onnx_import.ops.convolution import torch_pads
from search.onnx_import.ops.table import Call, normalized_axes, op, positive_axis


@op("Identity")
def identity(call: Call) -> Tensor:
    return call[0]


@op("Shape")
def shape(call: Call) -> Tensor:
    sizes = list(call[0].shape)
    return torch.tensor(sizes[call.attribute("start", 0) : call.attribute("end")], dtype=torch.int64)


@op("Size")
def size(call: Call) -> Tensor:
    return torch.tensor(call[0].numel(), dtype=torch.int64)


@op("Reshape")
def reshape(call: Call) -> Tensor:
    x = call[0]
    target = call.ints_or_attribute(1, "shape") or []
    if not call.attribute("allowzero", 0):
        target = [x.shape[axis] if wanted == 0 else wanted for axis, wanted in enumerate(target)]
    return x.reshape(target)


@op("Flatten")
def flatten(call: Call) -> Tensor:
    x = call[0]
    axis = positive_axis(call.attribute("axis", 1), x.ndim)
    rows = 1
    for length in x.shape[:axis]:
        rows *= length
    columns = 1
    for length in x.shape[axis:]:
        columns *= length
    return x.reshape(rows, columns)


@op("Transpose")
def transpose(call: Call) -> Tensor:
    return call[0].permute(*call.attribute("perm", range(call[0].ndim - 1, -1, -1)))


@op("Squeeze")
def squeeze(call: Call) -> Tensor:
    axes = call.ints_or_attribute(1, "axes")
    x = call[0]
    if axes is None:
        return x.squeeze()
    axes = normalized_axes(axes, x.ndim)
    if any(x.shape[axis] != 1 for axis in axes):
        raise ValueError(f"cannot squeeze axes {axes} of shape {tuple(x.shape)}")
    return x.reshape([length for axis, length in enumerate(x.shape) if axis not in axes])


@op("Unsqueeze")
def unsqueeze(call: Call) -> Tensor:
    axes = call.ints_or_attribute(1, "axes") or []
    x = call[0]
    for axis in sorted(normalized_axes(axes, x.ndim + len(axes))):
        x = x.unsqueeze(axis)
    return x


@op("Expand")
def expand(call: Call) -> Tensor:
    target = call.ints(1) or []
    return call[0].expand(np.broadcast_shapes(tuple(call[0].shape), tuple(target)))


@op("Tile")
def tile(call: Call) -> Tensor:
    return call[0].repeat(*(call.ints(1) or [])) if call[0].ndim else call[0]


@op("Concat")
def concat(call: Call) -> Tensor:
    return torch.cat(call.present(), call.attribute("axis", 1))


@op("Split")
def split(call: Call) -> tuple[Tensor | None, ...]:
    x, axis = call[0], call.attribute("axis", 0)
    sizes = call.ints_or_attribute(1, "split")
    if sizes is None:
        count = call.attribute("num_outputs", len(call.node.outputs))
        each = -(-x.shape[axis] // count)
        sizes = [max(0, min(each, x.shape[axis] - each * index)) for index in range(count)]
    return tuple(torch.split(x, sizes, axis))


@op("Trilu")
def trilu(call: Call) -> Tensor:
    offset = call.ints(1) or [0]
    x = call[0]
    return torch.triu(x, offset[0]) if call.attribute("upper", 1) else torch.tril(x, offset[0])


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@op("Pad")
def pad(call: Call) -> Tensor:
    x = call[0]
    pads = call.ints(1) if call.opset >= 11 else list(call.attribute("pads", call.attribute("paddings")))
    assert pads is not None
    axes = call.ints(3)
    if axes is not None:
        spread = [0] * (2 * x.ndim)
        for place, axis in enumerate(normalized_axes(axes, x.ndim)):
            spread[axis], spread[axis + x.ndim] = pads[place], pads[place + len(axes)]
        pads = spread
    mode = call.attribute("mode", "constant")
    begins, ends = pads[: x.ndim], pads[x.ndim :]
    if mode == "constant":
        fill = call.optional(2) if call.opset >= 11 else None
        value = call.attribute("value", 0.0) if fill is None else fill.reshape(()).item()
        return F.pad(x, torch_pads(begins, ends), value=value)
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin or end:
            x = x.index_select(axis, _padded_positions(mode, x.shape[axis], begin, end).to(x.device))
    return x


def _padded_positions(mode: str, length: int, begin: int, end: int) -> Tensor:
    """Where each position of a padded axis reads from."""
    places = torch.arange(-begin, length + end)
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    if mode != "reflect":
        raise ValueError(f"pad mode {mode!r}")
    period = max(1, 2 * (length - 1))
    folded = places % period
    return torch.where(folded < length, folded, period - folded)


@op("DepthToSpace")
def depth_to_space(call: Call) -> Tensor:
    x, block = call[0], call.attribute("blocksize")
    n, c, h, w = x.shape
    if call.attribute("mode", "DCR") == "DCR":
        y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // block**2, h * block, w * block)


@op("SpaceToDepth")
def space_to_depth(call: Call) -> Tensor:
    x, block = call[0], call.attribute("blocksize")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block)
    y = parts.permute(*((0, 3, 5, 1, 2, 4) if call.attribute("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)))
    return y.reshape(n, c * block**2, h // block, w // block)
