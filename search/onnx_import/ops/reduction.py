"""Reductions along axes, and arg-extrema."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from search.onnx_import.ops.table import OPS, Call, Op, op


def _axes(call: Call, x: Tensor) -> tuple[int, ...] | None:
    """The axes to reduce, all when none are given; None when the op is to do nothing."""
    axes = call.ints_or_attribute(1, "axes")
    if axes:
        return tuple(axes)
    return None if call.attribute("noop_with_empty_axes", 0) else tuple(range(x.ndim))


def _product(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    for dim in sorted((d % x.ndim for d in dims), reverse=True):
        x = torch.prod(x, dim, keepdim=keep, dtype=x.dtype)
    return x


def _mean(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return x.mean(dims, keepdim=keep) if x.is_floating_point() else x.double().mean(dims, keepdim=keep).to(x.dtype)


def _sum(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sum(x, dims, keepdim=keep, dtype=x.dtype)


def _extreme(x: Tensor, dims: tuple[int, ...], keep: bool, largest: bool) -> Tensor:
    if any(x.shape[d] == 0 for d in dims):
        edge: float | bool
        if x.dtype == torch.bool:
            edge = not largest
        elif x.is_floating_point():
            edge = -torch.inf if largest else torch.inf
        else:
            edge = torch.iinfo(x.dtype).min if largest else torch.iinfo(x.dtype).max
        shape = [1 if d in {a % x.ndim for a in dims} else size for d, size in enumerate(x.shape)]
        full = torch.full(shape, edge, dtype=x.dtype, device=x.device)
        return full if keep else full.squeeze(dims)
    return x.amax(dims, keepdim=keep) if largest else x.amin(dims, keepdim=keep)


def _l2(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    total = _sum(x * x, dims, keep)
    return torch.sqrt(total) if x.is_floating_point() else torch.sqrt(total.double()).to(x.dtype)


_REDUCTIONS: dict[str, tuple[Callable[[Tensor, tuple[int, ...], bool], Tensor], Callable[[Tensor], Tensor]]] = {
    "ReduceSum": (_sum, lambda x: x),
    "ReduceMean": (_mean, lambda x: x),
    "ReduceProd": (_product, lambda x: x),
    "ReduceMax": (lambda x, d, k: _extreme(x, d, k, True), lambda x: x),
    "ReduceMin": (lambda x, d, k: _extreme(x, d, k, False), lambda x: x),
    "ReduceL1": (lambda x, d, k: _sum(torch.abs(x), d, k), torch.abs),
    "ReduceL2": (_l2, torch.abs),
    "ReduceSumSquare": (lambda x, d, k: _sum(x * x, d, k), lambda x: x * x),
    "ReduceLogSum": (lambda x, d, k: torch.log(_sum(x, d, k)), torch.log),
    "ReduceLogSumExp": (lambda x, d, k: torch.logsumexp(x, d, keepdim=k), lambda x: x),
}  # fmt: skip


def _reduction(name: str) -> Op:
    reduce, alone = _REDUCTIONS[name]

    def run(call: Call) -> Tensor:
        x = call[0]
        axes = _axes(call, x)
        if axes is None or x.ndim == 0:
            return alone(x)
        return reduce(x, axes, bool(call.attribute("keepdims", 1)))

    return run


for _name in _REDUCTIONS:
    OPS[_name] = _reduction(_name)


@op("ArgMax", "ArgMin")
def arg_extreme(call: Call) -> Tensor:
    x, axis, keep = call[0], call.attribute("axis", 0), bool(call.attribute("keepdims", 1))
    find = torch.argmax if call.node.op_type == "ArgMax" else torch.argmin
    if not call.attribute("select_last_index", 0):
        return find(x, axis, keepdim=keep)
    last: Tensor = x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=keep)
    return last
