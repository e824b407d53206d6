"""Lane model: the 4-bit kernels' index arithmetic in numpy, lane by lane, as the proof that layout and fragments agree.

Arrays of registers have shape (32, registers). `mma_*` place every register of every lane where the instruction set
says it belongs (PTX ISA, "Matrix Fragments for mma"), multiply the matrices in int64 or float64 and hand the result
back in the lanes' own order; nothing here knows how the kernels pack. `gemm_*` then do per tile of 16 channels, 8 rows
of activations and k 64 what one warp of a kernel does: the same loads at the same offsets, the same unpacking, the same
sequence of instructions. Weights are operand A, so the sums come out transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.cuda.packing import (
    HIGH_NIBBLES,
    K_ALIGNMENT,
    LANES,
    NIBBLE,
    SIGNED_ZERO_POINT,
    STEPS_PER_BLOCK,
    STRIP_ROWS,
    FragmentWeights,
    padded_k,
)

Array = np.ndarray[Any, Any]
TileProduct = Callable[[Array, Array], Array]

LANE = np.arange(LANES)
G, T = LANE >> 2, LANE & 3
TILE_ROWS = 8


def mma_m16n8k32_s8(a: Array, b: Array, c: Array) -> Array:
    """C + A·B with A 16 × 32 and B 32 × 8 of int8: registers (32, 4), (32, 2) and int64 (32, 4)."""
    return c + _m16n8(_bytes(a), _bytes(b))


def mma_m16n8k64_s4(a: Array, b: Array, c: Array) -> Array:
    """C + A·B with A 16 × 64 and B 64 × 8 of int4, whose nibble i of a register is the lane's i-th k."""
    return c + _m16n8(_signed_nibbles(a), _signed_nibbles(b))


def mma_m16n8k16_f16(a: Array, b: Array, c: Array) -> Array:
    """C + A·B with A 16 × 16 and B 16 × 8: (32, 4, 2) and (32, 2, 2) values, two per register, float64 (32, 4)."""
    return c + _m16n8(a, b)


def mma_m8n8_s8(a: Array, b: Array, c: Array) -> Array:
    """Turing's m8n8k16: one register of A (row g), one of B (column g), C (32, 2) at row g and columns 2t, 2t + 1."""
    return c + _m8n8(_bytes(a[:, None]), _bytes(b[:, None]))


def mma_m8n8_s4(a: Array, b: Array, c: Array) -> Array:
    """Turing's m8n8k32 of int4."""
    return c + _m8n8(_signed_nibbles(a[:, None]), _signed_nibbles(b[:, None]))


def times16_low(words: Array) -> Array:
    return np.asarray((words << np.uint32(4)) & HIGH_NIBBLES)


def times16_high(words: Array) -> Array:
    return np.asarray(words & HIGH_NIBBLES)


def w4a8_tile(x: Array, words: Array) -> Array:
    """16 × (weights, 16 rows of 8 words)·(activations, 8 rows of 64 bytes)ᵀ as lanes hold it, int64 (32, 4).

    A lane loads words 2t and 2t + 1 of channels g and g + 8, and 16 bytes at byte 16t of row g. Every word with its
    eight activations is one product: low nibbles and bytes 0–3 at k = 4t…, high nibbles and bytes 4–7 at k = 16 + 4t….
    """
    bytes_of_lane = 16 * T[:, None] + np.arange(16)
    return _w4a8(words, (2 * T, 2 * T + 1), np.ascontiguousarray(x[G[:, None], bytes_of_lane]).view("<u4"))


def w4a8_tile_halves(x: Array, words: Array) -> Array:
    """The same with words t and t + 4: the first product covers k < 32, the second the rest, for groups of 32."""
    near = 8 * T[:, None] + np.arange(8)
    bytes_of_lane = np.concatenate([near, near + 32], axis=1)
    return _w4a8(words, (T, T + 4), np.ascontiguousarray(x[G[:, None], bytes_of_lane]).view("<u4"))


def _w4a8(words: Array, at: tuple[Array, Array], registers: Array) -> Array:
    sums = np.zeros((LANES, 4), np.int64)
    for i, word in enumerate(at):
        sums = mma_m16n8k32_s8(_unpacked_rows(words, word), registers[:, 2 * i : 2 * i + 2], sums)
    return sums


def w4a4_tile(x: Array, words: Array) -> Array:
    """256 × (16 rows of 8 words)·(8 rows of 8 words)ᵀ, int64 (32, 4): both operands unpacked to 16 times the code."""
    sums = np.zeros((LANES, 4), np.int64)
    for word in (2 * T, 2 * T + 1):
        b = np.stack([times16_low(x[G, word]), times16_high(x[G, word])], axis=1)
        sums = mma_m16n8k32_s8(_unpacked_rows(words, word), b, sums)
    return sums


def _unpacked_rows(words: Array, word: Array) -> Array:
    top, low = words[G, word], words[G + 8, word]
    return np.stack([times16_low(top), times16_low(low), times16_high(top), times16_high(low)], axis=1)


def s4_tile(x: Array, words: Array) -> Array:
    """The same product by one `mma.m16n8k64.s4`, times 1."""
    a = np.stack([words[G, 2 * T], words[G + 8, 2 * T], words[G, 2 * T + 1], words[G + 8, 2 * T + 1]], axis=1)
    return mma_m16n8k64_s4(a, np.stack([x[G, 2 * T], x[G, 2 * T + 1]], axis=1), np.zeros((LANES, 4), np.int64))


def s4_tile_turing(x: Array, words: Array) -> Array:
    """The same product by four `mma.m8n8k32.s4`: two halves of the channels times two halves of k."""
    halves = []
    for channels in (G, G + 8):
        sums = np.zeros((LANES, 2), np.int64)
        for word in (2 * T, 2 * T + 1):
            sums = mma_m8n8_s4(words[channels, word], x[G, word], sums)
        halves.append(sums)
    return np.concatenate(halves, axis=1)


def gemm_words(x: Array, words: Array, tile: TileProduct) -> Array:
    """int64 (M, N) of an integer kernel over whole matrices, with tiles of 8 rows and 16 channels and guarded edges.

    `x` is int8 (M, K) for the w4a8 tiles, and uint32 words (M, padded K / 8) for the 4-bit ones.
    """
    per_block = K_ALIGNMENT if x.dtype == np.int8 else K_ALIGNMENT // 8
    blocks = words.shape[1] // (K_ALIGNMENT // 8)
    m, n = x.shape[0], words.shape[0]
    x = np.pad(x, ((0, -m % TILE_ROWS), (0, blocks * per_block - x.shape[1])))
    words = np.pad(words, ((0, -n % STRIP_ROWS), (0, 0)))
    out = np.zeros((x.shape[0], words.shape[0]), np.int64)
    for i in range(0, x.shape[0], TILE_ROWS):
        for j in range(0, words.shape[0], STRIP_ROWS):
            for block in range(blocks):
                part = tile(
                    x[i : i + TILE_ROWS, block * per_block : (block + 1) * per_block],
                    words[j : j + STRIP_ROWS, block * 8 : (block + 1) * 8],
                )
                out[i + 2 * T, j + G] += part[:, 0]
                out[i + 2 * T + 1, j + G] += part[:, 1]
                out[i + 2 * T, j + G + 8] += part[:, 2]
                out[i + 2 * T + 1, j + G + 8] += part[:, 3]
    return out[:m, :n]


def gemm_fragments(x: Array, weights: FragmentWeights) -> Array:
    """float64 (M, N) of the weight-only kernel: weights are the A operand, eight rows of activations the B operand.

    Sums of one group are scaled by its ratio when the group ends, and the row by its channel scale at the end.
    """
    m = x.shape[0]
    strips, blocks = weights.words.shape[:2]
    x = np.pad(x.astype(np.float64), ((0, -m % TILE_ROWS), (0, padded_k(weights.k) - weights.k)))
    group = padded_k(weights.k) if weights.group_size is None else weights.group_size
    out = np.zeros((x.shape[0], strips * STRIP_ROWS))
    for strip in range(strips):
        for token in range(0, x.shape[0], TILE_ROWS):
            sums, part = np.zeros((LANES, 4)), np.zeros((LANES, 4))
            for step in range(blocks * STEPS_PER_BLOCK):
                k = 16 * step
                word = weights.words[strip, step // STEPS_PER_BLOCK, :, step % STEPS_PER_BLOCK]
                b = np.stack([x[token + G, k + 2 * T + i] for i in (0, 1, 8, 9)], axis=1).reshape(LANES, 2, 2)
                part = mma_m16n8k16_f16(_fragment(word, weights, strip, k // group), b, part)
                if (k + 16) % group == 0 or step + 1 == blocks * STEPS_PER_BLOCK:
                    ratio = np.ones((8, 2)) if weights.ratios is None else weights.ratios[strip, k // group]
                    sums += part * np.repeat(ratio[G].astype(np.float64), 2, axis=1)
                    part = np.zeros((LANES, 4))
            row = STRIP_ROWS * strip + G
            out[token + 2 * T, row], out[token + 2 * T + 1, row] = sums[:, 0], sums[:, 1]
            out[token + 2 * T, row + 8], out[token + 2 * T + 1, row + 8] = sums[:, 2], sums[:, 3]
    return np.asarray(out[:m, : weights.n] * weights.channel_scale)


def _fragment(word: Array, weights: FragmentWeights, strip: int, group: int) -> Array:
    """(32, 4, 2) weights of one word per lane, less their zero point: registers r and halves h at bit 4r + 16h."""
    shifts = np.array([[4 * r + 16 * h for h in range(2)] for r in range(4)], np.uint32)
    values = ((word[:, None, None] >> shifts) & NIBBLE).astype(np.float64)
    if weights.zero_points is None:
        return values - SIGNED_ZERO_POINT
    pair = weights.zero_points[strip, group][G].astype(np.float64)
    return np.asarray(values - pair[:, [0, 1, 0, 1], None])


def _bytes(registers: Array) -> Array:
    return np.ascontiguousarray(registers, np.uint32)[..., None].view(np.int8).astype(np.int64)


def _signed_nibbles(registers: Array) -> Array:
    nibbles = (np.asarray(registers, np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & NIBBLE
    return np.asarray((nibbles.astype(np.int64) ^ 8) - 8)


def _m16n8(a: Array, b: Array) -> Array:
    """A·B from (32, 4, e) and (32, 2, e) values of e per register, in the accumulator's lane order (32, 4)."""
    width = a.shape[2]
    left, right = np.zeros((16, 8 * width), a.dtype), np.zeros((8 * width, 8), b.dtype)
    for e in range(width):
        near, far = width * T + e, width * (T + 4) + e
        left[G, near], left[G + 8, near], left[G, far], left[G + 8, far] = (
            a[:, 0, e],
            a[:, 1, e],
            a[:, 2, e],
            a[:, 3, e],
        )
        right[near, G], right[far, G] = b[:, 0, e], b[:, 1, e]
    product = left @ right
    rows, columns = np.stack([G, G, G + 8, G + 8], axis=1), np.stack([2 * T, 2 * T + 1] * 2, axis=1)
    return np.asarray(product[rows, columns])


def _m8n8(a: Array, b: Array) -> Array:
    width = a.shape[2]
    left, right = np.zeros((8, 4 * width), a.dtype), np.zeros((4 * width, 8), b.dtype)
    for e in range(width):
        left[G, width * T + e], right[width * T + e, G] = a[:, 0, e], b[:, 0, e]
    product = left @ right
    return np.stack([product[G, 2 * T], product[G, 2 * T + 1]], axis=1)
