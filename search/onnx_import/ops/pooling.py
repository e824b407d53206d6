"""Pooling: windows with ceil mode, dilation and asymmetric pads, and global pools."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from search.onnx_import.ops.convolution import torch_pads, window_pads
from search.onnx_import.ops.table import Call, op

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _window(call: Call, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations, begins and ends; with ceil_mode the ends are extended to the last window."""
    kernel = list(call.attribute("kernel_shape"))
    spatial = len(kernel)
    strides = list(call.attribute("strides", [1] * spatial))
    dilations = list(call.attribute("dilations", [1] * spatial))
    begins, ends = window_pads(call, x.shape[2:], kernel, strides, dilations)
    return kernel, strides, dilations, begins, ends


def _is_torch_padding(begins: list[int], ends: list[int], kernel: list[int]) -> bool:
    """Whether torch's own pools take the pads: equal on both sides and at most half the window."""
    return begins == ends and all(0 <= 2 * pad <= k for pad, k in zip(begins, kernel, strict=True))


def _ceil_extra(
    sizes: Sequence[int],
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    begins: list[int],
    ends: list[int],
) -> list[int]:
    """Elements to add behind `ends` so that the last window of ceil mode is whole; it must start inside the input."""
    extra = []
    for size, k, stride, dilation, begin, end in zip(sizes, kernel, strides, dilations, begins, ends, strict=True):
        reach = dilation * (k - 1) + 1
        windows = -(-(size + begin + end - reach) // stride) + 1
        if (windows - 1) * stride >= size + begin:
            windows -= 1
        extra.append(max(0, (windows - 1) * stride + reach - (size + begin + end)))
    return extra


@op("MaxPool")
def max_pool(call: Call) -> Tensor | tuple[Tensor | None, ...]:
    x = call[0]
    kernel, strides, dilations, begins, ends = _window(call, x)
    spatial = len(kernel)
    if spatial not in _MAX_POOL:
        raise call.unsupported(f"{spatial} spatial dimensions")
    if call.attribute("ceil_mode", 0):
        ends = [
            end + extra
            for end, extra in zip(ends, _ceil_extra(x.shape[2:], kernel, strides, dilations, begins, ends), strict=True)
        ]
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    source = x if x.is_floating_point() else x.to(torch.float64)
    if len(call.node.outputs) < 2 and _is_torch_padding(begins, ends, kernel):
        return _MAX_POOL[spatial](source, kernel, strides, begins, dilations).to(x.dtype)
    padded = F.pad(source, torch_pads(begins, ends), value=float(lowest))
    if len(call.node.outputs) < 2:
        return _MAX_POOL[spatial](padded, kernel, strides, 0, dilations).to(x.dtype)
    values, flat = _MAX_POOL[spatial](padded, kernel, strides, 0, dilations, return_indices=True)
    return values.to(x.dtype), _source_indices(call, flat, x.shape, padded.shape, begins)


def _source_indices(call: Call, flat: Tensor, shape: torch.Size, padded: torch.Size, begins: list[int]) -> Tensor:
    """Positions inside the flattened unpadded input, as ONNX counts them: over batch and channels too."""
    places = []
    for size, begin in zip(reversed(padded[2:]), reversed(begins), strict=True):
        places.append(flat % size - begin)
        flat = flat // size
    places.reverse()
    sizes = list(shape[2:])
    if call.attribute("storage_order", 0):
        places.reverse()
        sizes.reverse()
    index = torch.zeros_like(flat)
    for place, size in zip(places, sizes, strict=True):
        index = index * size + place
    image = torch.arange(shape[0] * shape[1], device=flat.device).reshape(shape[0], shape[1], *[1] * len(sizes))
    total = 1
    for size in sizes:
        total *= size
    return index + image * total


def _window_sum(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    """The sum over each window, without padding."""
    for axis, (k, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), start=2):
        reach = dilation * (k - 1) + 1
        x = x.unfold(axis, reach, stride)[..., ::dilation].sum(-1)
    return x


@op("AveragePool")
def average_pool(call: Call) -> Tensor:
    x = call[0]
    kernel, strides, dilations, begins, ends = _window(call, x)
    extra = [0] * len(kernel)
    whole = set(dilations) == {1} and not call.attribute("ceil_mode", 0)
    if whole and len(kernel) in _AVERAGE_POOL and _is_torch_padding(begins, ends, kernel):
        inclusive = bool(call.attribute("count_include_pad", 0))
        return _AVERAGE_POOL[len(kernel)](x, kernel, strides, begins, False, inclusive)
    if call.attribute("ceil_mode", 0):
        extra = _ceil_extra(x.shape[2:], kernel, strides, dilations, begins, ends)
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    if call.attribute("count_include_pad", 0):
        counted = F.pad(counted, torch_pads(begins, ends), value=1.0)
        counted = F.pad(counted, torch_pads([0] * len(kernel), extra))
    else:
        counted = F.pad(counted, torch_pads(begins, [e + m for e, m in zip(ends, extra, strict=True)]))
    padded = F.pad(x, torch_pads(begins, [e + m for e, m in zip(ends, extra, strict=True)]))
    return _window_sum(padded, kernel, strides, dilations) / _window_sum(counted, kernel, strides, dilations)


@op("LpPool")
def lp_pool(call: Call) -> Tensor:
    x, p = call[0], call.attribute("p", 2)
    kernel, strides, dilations, begins, ends = _window(call, x)
    if call.attribute("ceil_mode", 0):
        extra = _ceil_extra(x.shape[2:], kernel, strides, dilations, begins, ends)
        ends = [end + more for end, more in zip(ends, extra, strict=True)]
    padded = F.pad(torch.abs(x) ** p, torch_pads(begins, ends))
    return torch.pow(_window_sum(padded, kernel, strides, dilations), 1 / p)


@op("GlobalAveragePool")
def global_average_pool(call: Call) -> Tensor:
    return call[0].mean(dim=tuple(range(2, call[0].ndim)), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(call: Call) -> Tensor:
    return call[0].amax(dim=tuple(range(2, call[0].ndim)), keepdim=True)
