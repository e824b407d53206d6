"""Normalization: batch (inference form), layer, instance, group, RMS and local response."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from search.onnx_import.ops.table import Call, aligned, op, positive_axis


def _per_channel(values: Tensor, rank: int) -> Tensor:
    return values.reshape(1, -1, *[1] * (rank - 2)) if rank > 1 else values


@op("BatchNormalization")
def batch_normalization(call: Call) -> Tensor:
    """y = x·s + (b − mean·s) with s = scale / sqrt(var + epsilon): plain arithmetic, so any derivative exists."""
    if call.attribute("training_mode", 0):
        raise call.unsupported("batch normalization in training mode")
    x, scale, bias, mean, variance = call.present()
    factor = scale / torch.sqrt(variance + call.attribute("epsilon", 1e-5))
    return x * _per_channel(factor, x.ndim) + _per_channel(bias - mean * factor, x.ndim)


@op("LayerNormalization")
def layer_normalization(call: Call) -> tuple[Tensor | None, ...]:
    x, scale = aligned(call[0], call[1])
    bias = call.optional(2)
    axis = positive_axis(call.attribute("axis", -1), x.ndim)
    epsilon = call.attribute("epsilon", 1e-5)
    dims = tuple(range(axis, x.ndim))
    if len(call.node.outputs) == 1 and scale.shape == x.shape[axis:] and (bias is None or bias.shape == scale.shape):
        return (F.layer_norm(x, x.shape[axis:], scale, bias, epsilon),)
    mean = x.mean(dims, keepdim=True)
    inverse = torch.rsqrt(((x - mean) ** 2).mean(dims, keepdim=True) + epsilon)
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


@op("RMSNormalization")
def rms_normalization(call: Call) -> Tensor:
    x, scale = aligned(call[0], call[1])
    dims = tuple(range(positive_axis(call.attribute("axis", -1), x.ndim), x.ndim))
    return x * torch.rsqrt((x * x).mean(dims, keepdim=True) + call.attribute("epsilon", 1e-5)) * scale


@op("InstanceNormalization")
def instance_normalization(call: Call) -> Tensor:
    x, scale, bias = call.present()
    dims = tuple(range(2, x.ndim))
    mean = x.mean(dims, keepdim=True)
    variance = ((x - mean) ** 2).mean(dims, keepdim=True)
    normal = (x - mean) * torch.rsqrt(variance + call.attribute("epsilon", 1e-5))
    return normal * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


@op("GroupNormalization")
def group_normalization(call: Call) -> Tensor:
    x, scale, bias = call.present()
    groups = call.attribute("num_groups")
    split = x.reshape(x.shape[0], groups, -1)
    mean = split.mean(-1, keepdim=True)
    variance = ((split - mean) ** 2).mean(-1, keepdim=True)
    normal = ((split - mean) * torch.rsqrt(variance + call.attribute("epsilon", 1e-5))).reshape(x.shape)
    if scale.numel() != x.shape[1]:  # opset 18 gives one value per group
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return normal * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


@op("MeanVarianceNormalization")
def mean_variance_normalization(call: Call) -> Tensor:
    dims = tuple(call.attribute("axes", [0, 2, 3]))
    centred = call[0] - call[0].mean(dims, keepdim=True)
    return centred / (torch.sqrt((centred**2).mean(dims, keepdim=True)) + 1e-9)


@op("LpNormalization")
def lp_normalization(call: Call) -> Tensor:
    x, axis, p = call[0], call.attribute("axis", -1), call.attribute("p", 2)
    norm = torch.abs(x).sum(axis, keepdim=True) if p == 1 else torch.sqrt((x * x).sum(axis, keepdim=True))
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


@op("LRN")
def local_response_normalization(call: Call) -> Tensor:
    x, size = call[0], call.attribute("size")
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = F.pad((x * x).transpose(1, -1), (before, after)).unfold(-1, size, 1).sum(-1).transpose(1, -1)
    alpha, beta, bias = call.attribute("alpha", 1e-4), call.attribute("beta", 0.75), call.attribute("bias", 1.0)
    return torch.div(x, (bias + alpha / size * squares) ** beta)
