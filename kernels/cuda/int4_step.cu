// int4_step: one warp multiplies a 16 x 8 tile along K and does nothing else: the price of one step of each 4-bit path.
//
// STEP is 8 (4-bit weights, 8-bit activations), 4 (both 4-bit, as int8 times 16) or 0 (both 4-bit, mma.s4). Operands come
// as fragments: a lane's registers for a step of K 64 lie next to each other in global memory, activations as operand A
// (8 registers of bytes or 4 words), then weights as B (2 words). The sums go out four a lane, with the factor of the
// codes. So the machine code of the loop, four steps at a time, is loads, unpacking and products: what a path costs
// before tiling spreads it. On a device its time compares the int8 path with an emulated mma.s4. `steps` is a multiple
// of 4.
//
//     memory     │ step 0: lane 0 │ lane 1 │ ... │ lane 31 │ step 1: lane 0 │ ...      48 bytes a lane with STEP 8, else 32
//     a lane     │ x[0] x[1] x[2] x[3] │ x[4] .. x[7] with STEP 8 │ w[0] w[1] │ nothing, up to whole 16 bytes
//
//     STEP 8     A = x[0..3], then A = x[4..7]                       B = low, high of w[0], then of w[1]
//     STEP 4     A = low, low, high, high of x[0], x[1], x[0], x[1],  the same
//                then of x[2], x[3]
//     STEP 0     A = x[0..3]                                         B = w[0], w[1]
//
// Registers of A and B are those of the map in primitives.cuh.
//
// A step of W4A8 on most architectures     and on sm_103a, whose int8 products are cut down
//   6 unpacking + 1..4 moving                the same, and 4 or 5 UIADD3 around every IMMA, which copy its four sums:
//   2 IMMA                                   7 more a step on average. They come with the instruction, not with the
//                                            unpacking: gemm_s8 has 163 of them for 32 IMMA there, and 9 on sm_100a.

#include "int4.cuh"

constexpr int X_WORDS = STEP == 8 ? 8 : 4;
struct alignas(16) Operands {
  u32 x[X_WORDS];
  u32 w[2];
};

DEVICE void multiply_step(s32 (&sums)[4], const Operands& operands) {
  const Vector16 v = *reinterpret_cast<const Vector16*>(operands.x);
  const Vector8 w = *reinterpret_cast<const Vector8*>(operands.w);
  if constexpr (STEP == 0) {
    mma_m16n8k64_s4(sums, {v.x, v.y, v.z, v.w}, {w.x, w.y});
    return;
  }
  const u32 b[2][2] = {{times16_low(w.x), times16_high(w.x)}, {times16_low(w.y), times16_high(w.y)}};
  if constexpr (STEP == 8) {
    const Vector16 u = *reinterpret_cast<const Vector16*>(operands.x + 4);
    mma_m16n8k32_s8(sums, {v.x, v.y, v.z, v.w}, b[0]);
    mma_m16n8k32_s8(sums, {u.x, u.y, u.z, u.w}, b[1]);
  } else {
    mma_m16n8k32_s8(sums, {times16_low(v.x), times16_low(v.y), times16_high(v.x), times16_high(v.y)}, b[0]);
    mma_m16n8k32_s8(sums, {times16_low(v.z), times16_low(v.w), times16_high(v.z), times16_high(v.w)}, b[1]);
  }
}

KERNEL void __launch_bounds__(32) int4_step(const Operands* operands, s32* out, s32 steps) {
  s32 sums[4] = {};
  operands += lane_id();
#pragma unroll 1
  for (; steps > 0; steps -= 4, operands += 4 * 32) {
#pragma unroll
    for (int i = 0; i < 4; ++i) multiply_step(sums, operands[i * 32]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) out[lane_id() * 4 + i] = sums[i];
}
