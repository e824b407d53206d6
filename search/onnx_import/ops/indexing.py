"""Gathering, slicing and scattering."""

from __future__ import annotations

import torch
from torch import Tensor

from search.onnx_import.ops.table import Call, normalized_axes, op, positive_axis


def _inside(indices: Tensor, length: int, like: Tensor) -> Tensor:
    """Indices on the data's device with negative ones counted from the end."""
    indices = indices.to(device=like.device, dtype=torch.int64)
    return torch.where(indices < 0, indices + length, indices)


@op("Gather")
def gather(call: Call) -> Tensor:
    x = call[0]
    axis = positive_axis(call.attribute("axis", 0), x.ndim)
    indices = _inside(call[1], x.shape[axis], x)
    rows = torch.index_select(x, axis, indices.reshape(-1))
    return rows.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@op("GatherElements")
def gather_elements(call: Call) -> Tensor:
    x, axis = call[0], call.attribute("axis", 0)
    return torch.gather(x, axis, _inside(call[1], x.shape[axis], x))


def _tuple_index(x: Tensor, indices: Tensor, first: int) -> tuple[Tensor, ...]:
    parts = indices.to(device=x.device, dtype=torch.int64).unbind(-1)
    return tuple(torch.where(p < 0, p + x.shape[first + i], p) for i, p in enumerate(parts))


@op("GatherND")
def gather_nd(call: Call) -> Tensor:
    x, indices, batch = call[0], call[1], call.attribute("batch_dims", 0)
    if not batch:
        return x[_tuple_index(x, indices, 0)]
    flat_x = x.reshape(-1, *x.shape[batch:])
    flat_indices = indices.reshape(-1, *indices.shape[batch:])
    rows = [each[_tuple_index(each, picks, 0)] for each, picks in zip(flat_x, flat_indices, strict=True)]
    stacked = torch.stack(rows)
    return stacked.reshape(*x.shape[:batch], *stacked.shape[1:])


@op("Slice")
def slice_(call: Call) -> Tensor:
    x = call[0]
    if call.opset < 10:
        starts, ends = list(call.attribute("starts")), list(call.attribute("ends"))
        axes, steps = call.attribute("axes"), None
    else:
        starts, ends, axes, steps = call.ints(1) or [], call.ints(2) or [], call.ints(3), call.ints(4)
    axes = normalized_axes(range(len(starts)) if axes is None else axes, x.ndim)
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        length = x.shape[axis]
        picked = range(length)[_bounded(start) : _bounded(end) : step]
        if step > 0:
            x = x[(slice(None),) * axis + (slice(picked.start, max(picked.start, picked.stop), step),)]
        else:
            # An end of −length−1 or lower means "through element 0", which Python's slice reads from the other side.
            begin = min(start + length if start < 0 else start, length - 1)
            stop = max(end + length if end < 0 else end, -1)
            places = (
                torch.arange(begin, stop, step, device=x.device) if begin > stop else torch.empty(0, dtype=torch.int64)
            )
            x = x.index_select(axis, places.to(x.device))
    return x


def _bounded(value: int) -> int:
    return max(-(2**62), min(2**62, value))


_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("ScatterElements", "Scatter")
def scatter_elements(call: Call) -> Tensor:
    x, updates, axis = call[0], call[2], call.attribute("axis", 0)
    indices = _inside(call[1], x.shape[axis], x)
    reduction = call.attribute("reduction", "none")
    if reduction == "none":
        return torch.scatter(x, axis, indices, updates.to(x.dtype))
    return torch.scatter_reduce(x, axis, indices, updates, _SCATTER[reduction], include_self=True)


@op("ScatterND")
def scatter_nd(call: Call) -> Tensor:
    x, indices, updates = call[0], call[1], call[2]
    depth = indices.shape[-1]
    places = _tuple_index(x, indices, 0)
    flat = torch.zeros_like(places[0])
    for place, length in zip(places, x.shape[:depth], strict=True):
        flat = flat * length + place
    rest = list(x.shape[depth:])
    rows = x.reshape(-1, *rest)
    flat, updates = flat.reshape(-1), updates.reshape(-1, *rest).to(x.dtype)
    reduction = call.attribute("reduction", "none")
    if reduction == "none":
        return rows.index_put((flat,), updates).reshape(x.shape)
    spread = flat.reshape(-1, *[1] * len(rest)).expand_as(updates)
    return rows.scatter_reduce(0, spread, updates, _SCATTER[reduction], include_self=True).reshape(x.shape)


@op("TopK")
def top_k(call: Call) -> tuple[Tensor | None, ...]:
    k = call.attribute("k") if call.opset < 10 else int(call[1].reshape(()).item())
    axis, largest = call.attribute("axis", -1), bool(call.attribute("largest", 1))
    # A stable sort: equal values come in index order, as the standard and ONNX Runtime have it.
    values, indices = torch.sort(call[0], dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


@op("OneHot")
def one_hot(call: Call) -> Tensor:
    indices, values, axis = call[0], call[2], call.attribute("axis", -1)
    depth = int(call[1].reshape(()).item())
    indices = indices.to(torch.int64)
    indices = torch.where(indices < 0, indices + depth, indices)
    places = torch.arange(depth, device=indices.device)
    axis = positive_axis(axis, indices.ndim + 1)
    hit = indices.unsqueeze(axis) == places.reshape([depth if d == axis else 1 for d in range(indices.ndim + 1)])
    return torch.where(hit, values[1].to(hit.device), values[0].to(hit.device))


@op("NonZero")
def non_zero(call: Call) -> Tensor:
    return torch.nonzero(call[0]).t()


@op("Compress")
def compress(call: Call) -> Tensor:
    x, axis = call[0], call.attribute("axis")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    chosen = torch.nonzero(call[1].reshape(-1)).reshape(-1)
    return x.index_select(axis, chosen.to(x.device))


@op("ReverseSequence")
def reverse_sequence(call: Call) -> Tensor:
    x, lengths = call[0], call.ints(1) or []
    time, batch = call.attribute("time_axis", 0), call.attribute("batch_axis", 1)
    places = torch.arange(x.shape[time]).repeat(len(lengths), 1)
    for row, length in enumerate(lengths):
        places[row, :length] = places[row, :length].flip(0)
    moved = x.movedim((batch, time), (0, 1))
    spread = places.to(x.device).reshape(*places.shape, *[1] * (x.ndim - 2)).expand_as(moved)
    return torch.gather(moved, 1, spread).movedim((0, 1), (batch, time))
