"""Activation functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from search.onnx_import.ops.table import Call, aligned, is_integer, op


@op("Relu")
def relu(call: Call) -> Tensor:
    return torch.relu(call[0])


@op("LeakyRelu")
def leaky_relu(call: Call) -> Tensor:
    return F.leaky_relu(call[0], call.attribute("alpha", 0.01))


@op("PRelu")
def prelu(call: Call) -> Tensor:
    x, slope = aligned(call[0], call[1])
    if call.opset < 7 and slope.ndim == 1 and x.ndim > 2:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x < 0, slope * x, x)


@op("ThresholdedRelu")
def thresholded_relu(call: Call) -> Tensor:
    x = call[0]
    return torch.where(x > call.attribute("alpha", 1.0), x, torch.zeros_like(x))


@op("Elu")
def elu(call: Call) -> Tensor:
    return F.elu(call[0], call.attribute("alpha", 1.0))


@op("Celu")
def celu(call: Call) -> Tensor:
    return F.celu(call[0], call.attribute("alpha", 1.0))


@op("Selu")
def selu(call: Call) -> Tensor:
    x = call[0]
    alpha, gamma = (
        call.attribute("alpha", 1.67326319217681884765625),
        call.attribute("gamma", 1.05070102214813232421875),
    )
    return torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0))) * float(gamma)


@op("Sigmoid")
def sigmoid(call: Call) -> Tensor:
    return torch.sigmoid(call[0])


@op("HardSigmoid")
def hard_sigmoid(call: Call) -> Tensor:
    return torch.clamp(call.attribute("alpha", 0.2) * call[0] + call.attribute("beta", 0.5), 0, 1)


@op("HardSwish")
def hard_swish(call: Call) -> Tensor:
    return call[0] * torch.clamp(call[0] / 6 + 0.5, 0, 1)


@op("Swish")
def swish(call: Call) -> Tensor:
    return call[0] * torch.sigmoid(call.attribute("alpha", 1.0) * call[0])


@op("SwiGLU")
def swiglu(call: Call) -> Tensor:
    a, b = aligned(call[0], call[1])
    return a * torch.sigmoid(call.attribute("alpha", 1.0) * a) * b


@op("Mish")
def mish(call: Call) -> Tensor:
    return call[0] * torch.tanh(F.softplus(call[0]))


@op("Tanh")
def tanh(call: Call) -> Tensor:
    return torch.tanh(call[0])


@op("Softplus")
def softplus(call: Call) -> Tensor:
    return F.softplus(call[0])


@op("Softsign")
def softsign(call: Call) -> Tensor:
    return call[0] / (1 + torch.abs(call[0]))


@op("Gelu")
def gelu(call: Call) -> Tensor:
    return F.gelu(call[0], approximate=call.attribute("approximate", "none"))


@op("Shrink")
def shrink(call: Call) -> Tensor:
    x, bias, limit = call[0], call.attribute("bias", 0.0), call.attribute("lambd", 0.5)
    shrunk = torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))
    return shrunk.to(x.dtype)


@op("Clip")
def clip(call: Call) -> Tensor:
    x = call[0]
    low, high = call.optional(1), call.optional(2)
    if call.opset < 11:
        return torch.clamp(x, call.attribute("min"), call.attribute("max")) if call.node.attributes else x
    if low is not None:
        x = torch.maximum(*aligned(x, low)) if low.requires_grad or is_integer(x) else torch.clamp(x, min=low.item())
    if high is not None:
        x = torch.minimum(*aligned(x, high)) if high.requires_grad or is_integer(x) else torch.clamp(x, max=high.item())
    return x


def _over_axis(call: Call) -> tuple[Tensor, int, torch.Size]:
    """The tensor and axis to normalize over; before opset 13 all axes from `axis` (default 1) on, flattened."""
    x = call[0]
    if call.opset >= 13:
        return x, call.attribute("axis", -1), x.shape
    axis = call.attribute("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(*x.shape[:axis], -1), axis, x.shape


@op("Softmax")
def softmax(call: Call) -> Tensor:
    x, axis, shape = _over_axis(call)
    return torch.softmax(x, axis).reshape(shape)


@op("LogSoftmax")
def log_softmax(call: Call) -> Tensor:
    x, axis, shape = _over_axis(call)
    return torch.log_softmax(x, axis).reshape(shape)


@op("Hardmax")
def hardmax(call: Call) -> Tensor:
    x, axis, shape = _over_axis(call)
    largest = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, largest, 1).reshape(shape)


@op("Dropout")
def dropout(call: Call) -> tuple[Tensor | None, ...]:
    training = call.optional(2)
    if training is not None and bool(training.item()):
        ratio = call.optional(1)
        if (0.5 if ratio is None else float(ratio.item())) != 0:
            raise call.unsupported("dropout in training mode is random")
    return call[0], torch.ones_like(call[0], dtype=torch.bool)
