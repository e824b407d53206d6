"""Packing: how 4-bit weights lie in memory for the CUDA kernels, made on the CPU and undone exactly.

Two layouts, both from codes of shape (N, K), one row per output channel:

`pack_int4`: rows of 32-bit words, for the integer kernels of every architecture. K is padded to 64. Word w of a row
holds eight consecutive codes; byte j has k = 8w+j in its low nibble and k = 8w+4+j in its high nibble:

    bit   31..28   27..24   23..20   19..16   15..12   11..8    7..4     3..0
    k     8w+7     8w+3     8w+6     8w+2     8w+5     8w+1     8w+4     8w

so that `(w << 4) & 0xF0F0F0F0` and `w & 0xF0F0F0F0` are four int8 values each, equal to 16 times the code with its sign
already right: no sign extension, no byte permutation. Native `mma.s4` reads the same words, because the order within a
word is the same for both operands and a dot product does not depend on it.

`pack_fragments`: the A operands of `mma.m16n8k16` (16 output channels × 16 k), for the weight-only kernel. A lane's
four registers of such a tile, two values each, are one word; four words (k 64) are one 16-byte load per lane:

    words[strip][block][lane][step]        strip = n / 16, block = k / 64, step = k / 16 within the block
    lane = 4·g + t, register r, half h  ↔  n = 16·strip + g + 8·(r & 1),  k = 64·block + 16·step + 8·(r >> 1) + 2t + h
    bit of (r, h) = 4r + 16h               a shift and a mask with 0x000F000F isolate both halves of a register
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.errors import KernelsError

Array = np.ndarray[Any, Any]

K_ALIGNMENT = 64
CODES_PER_WORD = 8
STRIP_ROWS = 16
LANES = 32
STEPS_PER_BLOCK = 4
SIGNED_ZERO_POINT = 8
SIGN_FLIP = np.uint32(0x88888888)
HIGH_NIBBLES = np.uint32(0xF0F0F0F0)
NIBBLE = np.uint32(0xF)
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)


def padded_k(k: int) -> int:
    """K rounded up to the 64 that one step of every 4-bit kernel consumes."""
    return -(-k // K_ALIGNMENT) * K_ALIGNMENT


def pack_int4(codes: Array) -> Array:
    """uint32 words (N, padded K / 8) of signed codes (N, K) in [-8, 7]; the padding is code 0.

    Raises `KernelsError` (`bad_int4_codes`) for codes out of range or an array that is not a matrix of integers.
    """
    return _pack_words(_nibbles(codes, -8, 7))


def pack_uint4(codes: Array) -> Array:
    """Words of unsigned codes (N, K) in [0, 15], stored as code - 8: flipping the top bit of every nibble does that.

    The padding is stored 0, which is code 8; it only ever meets activations that are 0.
    """
    nibbles = _nibbles(codes, 0, 15)
    columns = codes.shape[1]
    nibbles[:, columns:] = SIGNED_ZERO_POINT
    return np.asarray(_pack_words(nibbles) ^ SIGN_FLIP)


def unpack_int4(words: Array, k: int) -> Array:
    """int8 codes (N, k) in [-8, 7] from the words of `pack_int4`."""
    low, high = times16(words)
    codes = np.concatenate([low.reshape(*words.shape, 4), high.reshape(*words.shape, 4)], axis=-1) >> 4
    return np.asarray(codes.reshape(words.shape[0], -1)[:, :k])


def unpack_uint4(words: Array, k: int) -> Array:
    """uint8 codes (N, k) in [0, 15] from the words of `pack_uint4`."""
    return np.asarray(unpack_int4(words, k) + SIGNED_ZERO_POINT).astype(np.uint8)


def times16(words: Array) -> tuple[Array, Array]:
    """What the integer kernels feed to `mma.s8`: int8 bytes, 16 × code, of the low and of the high nibbles.

    Shapes are those of `words` with the last axis four times as long.
    """
    words = np.ascontiguousarray(words, np.uint32)
    low = np.asarray((words << np.uint32(4)) & HIGH_NIBBLES)
    return low.view(np.int8), np.asarray(words & HIGH_NIBBLES).view(np.int8)


def signed_zero_points(zero_points: Array) -> Array:
    """int32 zero points as the kernels see them, who multiply by code - 8."""
    return np.asarray(zero_points, np.int32) - SIGNED_ZERO_POINT


def zero_point_correction(row_sums: Array, zero_points: Array) -> Array:
    """int64 (M, N) to subtract from Σ a·(code - 8) so that it becomes Σ a·(code - zero point).

    `row_sums` (M,) are the sums Σ a over K of every row of activations, `zero_points` (N,) in the codes' own range.
    """
    return np.outer(row_sums.astype(np.int64), signed_zero_points(zero_points).astype(np.int64))


def relative_scales(scale: Array) -> tuple[Array, Array]:
    """Scales (groups, N) as float16 ratios (groups, N) to a float32 scale (N,) per channel.

    The channel scale is the power of two above the largest, so a scale of 11 significant bits is kept exactly whatever
    its magnitude, and others to 2^-11.
    """
    channel = np.ldexp(np.float32(1), np.frexp(scale.max(axis=0))[1]).astype(np.float32)
    return (scale / channel.astype(np.float64)).astype(np.float16), channel


@dataclass(frozen=True)
class FragmentWeights:
    """Weights of the weight-only kernel: value = (code - zero point) · ratio · channel scale.

    `words` uint32 (strips, blocks, 32, 4). `ratios` float16 and `zero_points` uint16 (strips, groups, 8, 2), whose last
    two axes are n = 16·strip + g + 8·half, because a lane needs both halves; None for one scale per channel and for
    zero point 8. `channel_scale` float32 (N,) is a power of two where there are groups, so that a scale that float16
    can hold is kept exactly whatever its magnitude.
    """

    words: Array
    ratios: Array | None
    zero_points: Array | None
    channel_scale: Array
    n: int
    k: int
    group_size: int | None

    @property
    def size_bytes(self) -> int:
        parts = (self.words, self.ratios, self.zero_points, self.channel_scale)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def groups(self) -> int:
        """Groups along the padded K, one if the whole row shares a scale."""
        return 1 if self.group_size is None else -(-padded_k(self.k) // self.group_size)

    def scales(self) -> Array:
        """float64 scales (ceil(K / group), N) that the kernel applies, after their rounding to storage."""
        channel = self.channel_scale.astype(np.float64)
        if self.ratios is None or self.group_size is None:
            return channel[None]
        ratios = _rows_of(self.ratios)[:, : self.n].astype(np.float64)
        return np.asarray(ratios[: -(-self.k // self.group_size)] * channel)


def pack_fragments(
    codes: Array, scale: Array, group_size: int | None = None, zero_points: Array | None = None
) -> FragmentWeights:
    """Weights (N, K) for the weight-only kernel.

    Signed codes in [-8, 7], or unsigned ones in [0, 15] when `zero_points` is given. `scale` is (N,), or with groups
    (ceil(K / group size), N); `zero_points` has that shape too, or (N,) for one per channel.
    Raises `KernelsError`: `bad_int4_codes`, `bad_group_size`, `bad_scale`.
    """
    n, k = _matrix_shape(codes)
    if group_size is not None and group_size not in GROUP_SIZES:
        raise KernelsError(
            f"a group of {group_size} weights cannot be packed",
            hint=f"group sizes are {', '.join(map(str, GROUP_SIZES))}, or none for one scale per channel",
            code="bad_group_size",
        )
    nibbles = _nibbles(codes, -8, 7) + SIGNED_ZERO_POINT if zero_points is None else _nibbles(codes, 0, 15)
    groups_in_k = 1 if group_size is None else -(-k // group_size)
    scale = np.asarray(scale, np.float64).reshape(-1, n) if np.size(scale) == groups_in_k * n else np.empty((0, 0))
    if scale.size == 0 or not bool(np.all(np.isfinite(scale) & (scale > 0))):
        raise KernelsError(
            f"scales do not fit {n} channels in {groups_in_k} group(s), or are not all positive and finite",
            hint="one scale per channel, or an array (ceil(K / group size), N)",
            code="bad_scale",
        )
    channel, ratios = scale[0].astype(np.float32), None
    groups = groups_in_k if group_size is None else -(-padded_k(k) // group_size)
    if group_size is not None:
        found, channel = relative_scales(scale)
        ratios = _lane_pairs(found, groups, n)
    zeros = None
    if zero_points is not None:
        raw = np.broadcast_to(np.asarray(zero_points).reshape(-1, n), (groups_in_k, n))
        if raw.min() < 0 or raw.max() > 15:
            raise KernelsError("a zero point is outside [0, 15]", hint="zero points are codes", code="bad_int4_codes")
        zeros = _lane_pairs(raw.astype(np.uint16), groups, n)
    return FragmentWeights(_pack_tiles(nibbles), ratios, zeros, channel, n, k, group_size)


def unpack_fragments(weights: FragmentWeights) -> Array:
    """int8 codes (N, K) from fragment words: signed, or in [0, 15] where the weights have zero points."""
    strips, blocks = weights.words.shape[:2]
    shifts = np.array([[4 * r + 16 * h for h in range(2)] for r in range(4)], np.uint32)
    tiles = (weights.words[..., None, None] >> shifts) & NIBBLE
    tiles = tiles.reshape(strips, blocks, 8, 4, STEPS_PER_BLOCK, 2, 2, 2)
    codes = tiles.transpose(0, 6, 2, 1, 4, 5, 3, 7).reshape(strips * STRIP_ROWS, blocks * K_ALIGNMENT)
    offset = SIGNED_ZERO_POINT if weights.zero_points is None else 0
    return np.asarray(codes[: weights.n, : weights.k].astype(np.int8) - np.int8(offset))


def _matrix_shape(codes: Array) -> tuple[int, int]:
    if codes.ndim != 2 or 0 in codes.shape or not np.issubdtype(codes.dtype, np.integer):
        raise KernelsError(
            f"an array of shape {codes.shape} and type {codes.dtype} holds no weight codes",
            hint="pass integers of shape (N, K)",
            code="bad_int4_codes",
        )
    return codes.shape[0], codes.shape[1]


def _nibbles(codes: Array, low: int, high: int) -> Array:
    """uint32 codes with K padded by 0; two's complement is left to the mask of the packers."""
    _, k = _matrix_shape(codes)
    if codes.min() < low or codes.max() > high:
        raise KernelsError(
            f"codes run from {codes.min()} to {codes.max()}, 4 bits hold {low} to {high}",
            hint="quantize to 4 bits first; unsigned codes come with zero points",
            code="bad_int4_codes",
        )
    return np.pad(codes.astype(np.int32), ((0, 0), (0, padded_k(k) - k)))


def _pack_words(nibbles: Array) -> Array:
    rows = nibbles.shape[0]
    halves = (nibbles.astype(np.uint32) & NIBBLE).reshape(rows, -1, 2, 4)
    return np.ascontiguousarray((halves[:, :, 0] | (halves[:, :, 1] << np.uint32(4))).astype(np.uint8)).view("<u4")[
        :, :, 0
    ]


def _pack_tiles(nibbles: Array) -> Array:
    """uint32 (strips, blocks, 32, 4) of biased nibbles (N, padded K); rows are padded to 16 by nibble 0."""
    rows, columns = nibbles.shape
    strips, blocks = -(-rows // STRIP_ROWS), columns // K_ALIGNMENT
    full = np.pad(nibbles.astype(np.uint32), ((0, strips * STRIP_ROWS - rows), (0, 0)))
    # axes: strip, n half, g, block, step, k half, t, h  ->  strip, block, g, t, step, k half, n half, h
    tiles = full.reshape(strips, 2, 8, blocks, STEPS_PER_BLOCK, 2, 4, 2).transpose(0, 3, 2, 6, 4, 5, 1, 7)
    words = np.zeros(tiles.shape[:5], np.uint32)
    for r in range(4):
        for h in range(2):
            words |= tiles[..., r >> 1, r & 1, h] << np.uint32(4 * r + 16 * h)
    return words.reshape(strips, blocks, LANES, STEPS_PER_BLOCK)


def _lane_pairs(values: Array, groups: int, n: int) -> Array:
    """(groups in K, N) as (strips, groups, 8, 2): the pair of channels g and g + 8 that one lane works on."""
    strips = -(-n // STRIP_ROWS)
    full = np.zeros((groups, strips * STRIP_ROWS), values.dtype)
    full[: values.shape[0], :n] = values
    return np.ascontiguousarray(full.reshape(groups, strips, 2, 8).transpose(1, 0, 3, 2))


def _rows_of(pairs: Array) -> Array:
    """(groups, strips · 16) from the pairs of `_lane_pairs`."""
    strips, groups = pairs.shape[:2]
    return pairs.transpose(1, 0, 3, 2).reshape(groups, strips * STRIP_ROWS)
