"""The emulator's instructions against models written separately in numpy: which value lies in which lane's register."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.cuda import lane_model
from tests.kernels.cuda.simt.emulator import EmulatedKernel, Memory, emulate_text

Array = np.ndarray[Any, Any]
LANES = np.arange(32)

PRODUCTS = """
#include "primitives.cuh"
KERNEL void products(const u32* a, const u32* b, s32* c, s32 which) {
  const u32 lane = lane_id();
  u32 x[4], y[2];
  s32 z[4];
  float f[4];
  for (int i = 0; i < 4; ++i) x[i] = a[lane * 4 + i], z[i] = c[lane * 4 + i], f[i] = 0.0f;
  for (int i = 0; i < 2; ++i) y[i] = b[lane * 2 + i];
  if (which == 0) mma_m16n8k32_s8(z, x, y);
  if (which == 1) mma_m16n8k32_u8s8(z, x, y);
  if (which == 2) mma_m16n8k64_s4(z, x, y);
  if (which == 3) mma_m16n8k64_u4s4(z, x, y);
  if (which == 4) mma_m16n8k16_f16(f, x, y);
  if (which == 5) mma_m16n8k16_bf16(f, x, y);
  for (int i = 0; i < 4; ++i) c[lane * 4 + i] = which < 4 ? z[i] : static_cast<s32>(f[i]);
}
"""
MATRICES = """
#include "primitives.cuh"
KERNEL void matrices(const Vector16* rows, u32* straight, u32* turned, u32* two) {
  DYNAMIC_SHARED(shared);
  reinterpret_cast<Vector16*>(shared)[threadIdx.x] = rows[threadIdx.x];
  __syncthreads();
  const u32 row = shared_address(shared) + 16 * lane_id();
  u32 r[4], pair[2];
  ldmatrix_x4(r, row);
  for (int i = 0; i < 4; ++i) straight[lane_id() * 4 + i] = r[i];
  ldmatrix_x4_transposed(r, row);
  for (int i = 0; i < 4; ++i) turned[lane_id() * 4 + i] = r[i];
  ldmatrix_x2(pair, row);
  for (int i = 0; i < 2; ++i) two[lane_id() * 2 + i] = pair[i];
}
"""
WORDS = """
#include "primitives.cuh"
KERNEL void words(const u32* a, const u32* b, s32* out) {
  const u32 i = threadIdx.x;
  out[8 * i] = dot4_s8(a[i], b[i], 5);
  out[8 * i + 1] = dot4_u8s8(a[i], b[i], 5);
  out[8 * i + 2] = bitwise3<0xE8>(a[i], b[i], 0x0ff0f00fu);
  out[8 * i + 3] = permute_bytes(a[i], b[i], 0x7250);
  out[8 * i + 4] = shuffle_xor(a[i], 5);
  out[8 * i + 5] = half2_multiply(a[i] & 0x3bff3bffu, b[i] & 0x3bff3bffu);
  out[8 * i + 6] = float_to_half(static_cast<float>(static_cast<s32>(a[i]) >> 16));
  out[8 * i + 7] = float_to_bfloat16(static_cast<float>(static_cast<s32>(b[i])));
}
"""


def multiplied(kernel: EmulatedKernel, a: Array, b: Array, c: Array, which: int) -> Array:
    device = Memory()
    sums = device.upload(c, "c")
    kernel.launch(device, (1,), (32,), [device.upload(a, "a"), device.upload(b, "b"), sums, np.int32(which)])
    return sums.array


def unsigned_product(a: Array, b: Array, bits: int) -> Array:
    """The signed model on A = low half + 2^(bits - 1) · top bit: an unsigned operand in two signed parts."""
    ones = np.uint32(sum(1 << bits * i for i in range(32 // bits)))
    top = a >> np.uint32(bits - 1) & ones
    low = a & ~(ones << np.uint32(bits - 1))
    model = lane_model.mma_m16n8k32_s8 if bits == 8 else lane_model.mma_m16n8k64_s4
    zero = np.zeros((32, 4), np.int64)
    return model(low, b, zero) + (1 << bits - 1) * model(top, b, zero)


@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
def test_integer_products_place_every_value_where_the_model_does(arch: str) -> None:
    rng = np.random.default_rng(0)
    # bfloat16 has no fallback on sm_75, where the kernel below would not exist.
    text = PRODUCTS if arch == "sm_80" else PRODUCTS.replace("if (which == 5) mma_m16n8k16_bf16(f, x, y);", "")
    kernel = emulate_text(text, "products", arch)
    a, b = rng.integers(0, 1 << 32, (32, 4), np.uint32), rng.integers(0, 1 << 32, (32, 2), np.uint32)
    c = rng.integers(-1000, 1000, (32, 4), np.int32)
    np.testing.assert_array_equal(multiplied(kernel, a, b, c, 0), lane_model.mma_m16n8k32_s8(a, b, c.astype(np.int64)))
    np.testing.assert_array_equal(multiplied(kernel, a, b, c, 1), c + unsigned_product(a, b, 8))
    np.testing.assert_array_equal(multiplied(kernel, a, b, c, 2), lane_model.mma_m16n8k64_s4(a, b, c.astype(np.int64)))
    np.testing.assert_array_equal(multiplied(kernel, a, b, c, 3), c + unsigned_product(a, b, 4))


@pytest.mark.parametrize("which", [4, 5])
def test_float_products_place_every_value_where_the_model_does(which: int) -> None:
    rng = np.random.default_rng(which)
    a, b = (rng.integers(-20, 21, (32, count, 2)).astype(np.float32) for count in (4, 2))
    found = multiplied(
        emulate_text(PRODUCTS, "products"), _packed(a, which), _packed(b, which), np.zeros((32, 4), np.int32), which
    )
    np.testing.assert_array_equal(
        found, lane_model.mma_m16n8k16_f16(a.astype(float), b.astype(float), np.zeros((32, 4)))
    )


def test_ldmatrix_gives_lane_4g_plus_t_the_word_t_of_row_g() -> None:
    rng = np.random.default_rng(1)
    device = Memory()
    rows = rng.integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)  # matrix, row, column
    straight, turned = (device.empty((32, 4), np.uint32, name) for name in ("straight", "turned"))
    two = device.empty((32, 2), np.uint32, "two")
    held = device.upload(rows.view(np.uint32).reshape(32, 4), "rows")
    emulate_text(MATRICES, "matrices").launch(device, (1,), (32,), [held, straight, turned, two], shared_bytes=512)
    words = rows.view(np.uint32)  # matrix, row, word
    np.testing.assert_array_equal(straight.array, words[:, LANES // 4, LANES % 4].T)
    across = np.ascontiguousarray(rows.transpose(0, 2, 1)).view(np.uint32)
    np.testing.assert_array_equal(turned.array, across[:, LANES // 4, LANES % 4].T)
    np.testing.assert_array_equal(two.array, words[:2, LANES // 4, LANES % 4].T)


def test_words_are_computed_as_numpy_does() -> None:
    rng = np.random.default_rng(2)
    device = Memory()
    a, b = (rng.integers(0, 1 << 32, 32, np.uint32) for _ in range(2))
    out = device.empty((32, 8), np.int32, "out")
    emulate_text(WORDS, "words").launch(device, (1,), (32,), [device.upload(a, "a"), device.upload(b, "b"), out])
    signed = [x.view(np.int8).reshape(32, 4).astype(np.int32) for x in (a, b)]
    plain = a.view(np.uint8).reshape(32, 4).astype(np.int32)
    c = np.uint32(0x0FF0F00F)
    eight = np.concatenate([a.view(np.uint8).reshape(32, 4), b.view(np.uint8).reshape(32, 4)], axis=1)
    halves = [(x & np.uint32(0x3BFF3BFF)).view(np.float16).reshape(32, 2) for x in (a, b)]
    half = (a.view(np.int32) >> 16).astype(np.float32).astype(np.float16).view(np.uint16)
    bits = b.view(np.int32).astype(np.float32).view(np.uint32)
    expected = [
        (signed[0] * signed[1]).sum(axis=1) + 5,
        (plain * signed[1]).sum(axis=1) + 5,
        (a & b | a & c | b & c).view(np.int32),  # 0xE8 is the majority of three bits
        np.ascontiguousarray(eight[:, [0, 5, 2, 7]]).view(np.int32)[:, 0],
        a[LANES ^ 5].view(np.int32),
        (halves[0] * halves[1]).view(np.int32)[:, 0],
        half,
        (bits + 0x7FFF + (bits >> 16 & 1)) >> 16,
    ]
    np.testing.assert_array_equal(out.array, np.stack(expected, axis=1))


def _packed(values: Array, which: int) -> Array:
    """Registers of two halves (4) or bfloat16 (5) each."""
    if which == 4:
        return values.astype(np.float16).view(np.uint32)[..., 0]
    return np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint32)[..., 0]
