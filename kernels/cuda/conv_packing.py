"""Conv packing: weights and activations of the convolution kernels in the order of k that `src/conv.cuh` walks.

K runs over the taps of the filter row by row, and within a tap over the channels of one group, padded by code 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cuda.packing import pack_int4

Array = np.ndarray[Any, Any]
CODES_PER_STEP = 64
CODES_PER_WORD = 8


def by_taps(codes: Array, per_tap: int) -> Array:
    """int8 (O, R·S·per_tap) from (O, C, R, S), channels fastest and padded by code 0."""
    out_channels, channels, height, width = codes.shape
    taps = codes.transpose(0, 2, 3, 1).reshape(out_channels, height * width, channels)
    padded = np.pad(taps, ((0, 0), (0, 0), (0, per_tap - channels)))
    return padded.reshape(out_channels, -1).astype(np.int8)


def pack_taps(codes: Array, tap_bytes: int) -> Array:
    """int8 (O, whole steps of 64) from codes (O, C, R, S): tap after tap, channels padded to `tap_bytes`."""
    rows = by_taps(codes, tap_bytes)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % CODES_PER_STEP)))


def step_order(steps: int) -> Array:
    """Which k the j-th packed 4-bit weight is, beside 8-bit activations: the one a lane gets from ldmatrix.

    Word 2t + i of a step holds k = 32i + 4t .. 32i + 4t + 3 in its low nibbles and 16 further in its high ones.
    """
    word, nibble = np.divmod(np.arange(CODES_PER_STEP), CODES_PER_WORD)
    lane, half = np.divmod(word, 2)
    within = 32 * half + 4 * lane + 16 * (nibble // 4) + nibble % 4
    return np.asarray((CODES_PER_STEP * np.arange(steps)[:, None] + within).ravel())


def pack_depthwise(codes: Array) -> Array:
    """int8 (ceil(R·S / 4), O padded to 4, 4) from codes (O, 1, R, S): four taps of a channel side by side."""
    out_channels = codes.shape[0]
    taps = codes.reshape(out_channels, -1).astype(np.int8)
    padded = np.pad(taps, ((0, -out_channels % 4), (0, -taps.shape[1] % 4)))
    return np.ascontiguousarray(padded.reshape(len(padded), -1, 4).transpose(1, 0, 2))


def pack_pixels(codes: Array, groups: int) -> Array:
    """uint32 words (pixels, groups · ceil(C / groups / 8)) of signed 4-bit codes (pixels, C)."""
    pixels, channels = codes.shape
    per_group = channels // groups
    words = pack_int4(codes.reshape(pixels * groups, per_group))[:, : math.ceil(per_group / CODES_PER_WORD)]
    return np.ascontiguousarray(words.reshape(pixels, -1))
