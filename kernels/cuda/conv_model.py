"""Conv model: the index arithmetic of `src/conv.cuh` in numpy, as the proof that pieces, taps and packing agree.

It builds the image that the kernel never writes out: for every output pixel and every piece of every step the byte that
the kernel copies from and how many bytes of it count, found by the same walk of additions, then gathers and multiplies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.conv import CONV_S8, CONV_W4A8, ConvArguments, ConvPlan, piece_bytes, x_bytes
from kernels.cuda.conv_packing import step_order
from kernels.cuda.packing import unpack_int4

Array = np.ndarray[Any, Any]


def copied_pieces(plan: ConvPlan, group: int) -> tuple[Array, Array]:
    """(source byte, valid bytes), both int64 (rows, pieces): what fills the image rows of one group, 0 where nothing.

    Pieces run over all steps; a row is an output pixel.
    """
    a = plan.arguments(0, 0)
    assert isinstance(a, ConvArguments)
    piece = _piece(plan)
    r, s, c = _walk(a, piece, x_bytes(plan.source))
    rows = np.arange(a.m)
    q, p, n = rows % a.out_width, rows // a.out_width % a.out_height, rows // a.out_width // a.out_height
    h = (p * a.stride_height - a.pad_top)[:, None] + r * a.dilation_height
    w = (q * a.stride_width - a.pad_left)[:, None] + s * a.dilation_width
    seen = (r < a.kernel_height) & (h >= 0) & (h < a.height) & (w >= 0) & (w < a.width)
    source = ((n[:, None] * a.height + h) * a.width + w) * a.ld_x + group * a.group_bytes + c
    valid = np.where(seen, np.minimum(piece, a.group_bytes - c), 0)
    return np.where(seen, source, 0), valid


def image(plan: ConvPlan, x: Array, group: int) -> Array:
    """uint8 (rows, steps · X_BYTES): the matrix whose product with the weights is the convolution."""
    source, valid = copied_pieces(plan, group)
    piece = _piece(plan)
    stored = np.ascontiguousarray(x).view(np.uint8).ravel()
    lane = np.arange(piece)
    counts = lane < valid[..., None]
    at = np.where(counts, source[..., None] + lane, 0)
    return np.where(counts, stored[at], 0).astype(np.uint8).reshape(len(source), -1)


def convolve(plan: ConvPlan, x: Array, weights: Array) -> Array:
    """int64 (rows, O) from packed activations and packed weights, as the kernel sums them."""
    per_group = plan.op.out_channels // plan.op.groups
    parts = []
    for group in range(plan.op.groups):
        packed = weights[group * per_group : (group + 1) * per_group]
        rows = image(plan, x, group)
        if plan.source is CONV_S8:
            left, right = rows.view(np.int8), packed
        elif plan.source is CONV_W4A8:
            left = rows.view(np.int8)[:, step_order(plan.steps)]
            right = unpack_int4(packed, rows.shape[1])
        else:
            left = unpack_int4(rows.view("<u4"), rows.shape[1] * 2)
            right = unpack_int4(packed, left.shape[1])
        parts.append(left.astype(np.int64) @ right[:, : left.shape[1]].astype(np.int64).T)
    return np.concatenate(parts, axis=1)


def _walk(a: ConvArguments, piece: int, row: int) -> tuple[Array, Array, Array]:
    """(r, s, c) of every piece of every step, each thread's by the additions of `Walk::advance`."""
    position = np.arange(0, row, piece)
    tap, taps = position // a.tap_bytes, row // a.tap_bytes
    r, s, c = tap // a.kernel_width, tap % a.kernel_width, position % a.tap_bytes
    step_r, step_s, step_c = taps // a.kernel_width, taps % a.kernel_width, row % a.tap_bytes
    places = []
    for _ in range(a.steps):
        places.append((r, s, c))
        r, s, c = r + step_r, s + step_s, c + step_c
        over = c >= a.tap_bytes
        c, s = np.where(over, c - a.tap_bytes, c), s + over
        over = s >= a.kernel_width
        s, r = np.where(over, s - a.kernel_width, s), r + over
    walked = [np.concatenate(column) for column in zip(*places, strict=True)]
    return walked[0], walked[1], walked[2]


def _piece(plan: ConvPlan) -> int:
    return piece_bytes(int(plan.source.defines(plan.tile)["ALIGN_X"]))
