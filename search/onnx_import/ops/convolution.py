"""Convolution and transposed convolution in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from search.onnx_import.ops.table import Call, aligned, op

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def torch_pads(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """ONNX pads (all begins, all ends, first axis first) as `F.pad` wants them (last axis first, begin and end)."""
    pairs = list(zip(begins, ends, strict=True))
    return [value for begin, end in reversed(pairs) for value in (begin, end)]


def same_pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], lower: bool
) -> tuple[list[int], list[int]]:
    """Begins and ends that make the output ceil(size / stride) long; an odd rest goes to the end, or the start."""
    begins, ends = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        begins.append(large if lower else small)
        ends.append(small if lower else large)
    return begins, ends


def window_pads(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The begins and ends of `pads` and `auto_pad`."""
    spatial = len(kernel)
    auto = call.attribute("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return same_pads(sizes, kernel, strides, dilations, auto == "SAME_LOWER")
    pads = [0] * (2 * spatial) if auto == "VALID" else list(call.attribute("pads", [0] * (2 * spatial)))
    return pads[:spatial], pads[spatial:]


@op("Conv")
def conv(call: Call) -> Tensor:
    x, weight = aligned(call[0], call[1])
    bias = call.optional(2)
    spatial = weight.ndim - 2
    if spatial not in CONVOLUTIONS:
        raise call.unsupported(f"{spatial} spatial dimensions")
    kernel = list(weight.shape[2:])
    strides = list(call.attribute("strides", [1] * spatial))
    dilations = list(call.attribute("dilations", [1] * spatial))
    begins, ends = window_pads(call, x.shape[2:], kernel, strides, dilations)
    padding = begins
    if begins != ends:
        x, padding = F.pad(x, torch_pads(begins, ends)), [0] * spatial
    return CONVOLUTIONS[spatial](x, weight, bias, strides, padding, dilations, call.attribute("group", 1))


@op("ConvTranspose")
def conv_transpose(call: Call) -> Tensor:
    x, weight = aligned(call[0], call[1])
    bias = call.optional(2)
    spatial = weight.ndim - 2
    if spatial not in _CONV_TRANSPOSE:
        raise call.unsupported(f"{spatial} spatial dimensions")
    strides = list(call.attribute("strides", [1] * spatial))
    dilations = list(call.attribute("dilations", [1] * spatial))
    extra = list(call.attribute("output_padding", [0] * spatial))
    reach = [dilation * (k - 1) + 1 for dilation, k in zip(dilations, weight.shape[2:], strict=True)]
    full = [(size - 1) * s + r for size, s, r in zip(x.shape[2:], strides, reach, strict=True)]
    pads = list(call.attribute("pads", [0] * (2 * spatial)))
    auto, wanted = call.attribute("auto_pad", "NOTSET"), call.attribute("output_shape")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
    if wanted is not None:
        wanted = list(wanted)[-spatial:]
        totals = [size + e - target for size, e, target in zip(full, extra, wanted, strict=True)]
        # A target beyond the full size is reached by padding the end of the output, as output_padding does.
        extra = [e + max(0, -total) for e, total in zip(extra, totals, strict=True)]
        totals = [max(0, total) for total in totals]
        halves = [total // 2 for total in totals]
        rests = [total - half for total, half in zip(totals, halves, strict=True)]
        pads = halves + rests if auto == "SAME_UPPER" else rests + halves
    # torch wants output_padding below the stride and pads symmetric, so compute the full result and cut or extend it.
    y = _CONV_TRANSPOSE[spatial](x, weight, None, strides, 0, 0, call.attribute("group", 1), dilations)
    y = F.pad(y, torch_pads([-p for p in pads[:spatial]], [e - p for e, p in zip(extra, pads[spatial:], strict=True)]))
    return y if bias is None else y + bias.reshape(-1, *[1] * spatial)
