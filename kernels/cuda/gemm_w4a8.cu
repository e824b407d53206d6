// gemm_w4a8: 4-bit weights times 8-bit activations, on 8-bit tensor cores of every architecture from sm_75 on.
//
// Weights are words of 8 codes (`kernels.cuda.packing.pack_int4`), activations plain s8 rows. A word unpacks with one
// shift and two masks to 16 times its codes; src/int4.cuh shows the bits, src/int4_gemm.cuh the tiling. What a warp does
// in one step of K 64, for one of its tiles of 16 channels and 8 rows of activations (lane = 4g + t):
//
//     activations        row g    ┌────────┬────────┬────────┬────────┐
//     (64 bytes)                  │  t = 0 │  t = 1 │  t = 2 │  t = 3 │  16 bytes a lane: k 16t .. 16t+15
//                                 └────────┴────────┴────────┴────────┘
//                                  │ 0..3 │ 4..7 │ 8..11 │ 12..15 │      the lane's four registers
//     weights            channels g, g+8, words 2t and 2t+1, each unpacked to low and high
//     product 1   A = (low | high) of words 2t      B = (bytes 0..3, bytes 4..7)      one mma.m16n8k32.s8
//     product 2   A = (low | high) of words 2t+1    B = (bytes 8..11, bytes 12..15)   another
//
//       A  channel g       a[0] = low, a[2] = high     C  channel g       c[0], c[1]: rows 2t, 2t + 1 of the tile
//          channel g + 8   a[1] = low, a[3] = high        channel g + 8   c[2], c[3]: the same rows
//
// With the default tile, 128 x 128, a block is 4 x 2 warps of 32 rows by 64 channels each, 64 sums a thread, and a stage
// 128 rows of 64 bytes of activations and 128 rows of 32 bytes of weights, 12 KiB; four of them.
//
// The sums are 16 times the true ones; the epilogue shifts that away. Zero points of asymmetric weights enter as
// - zero_point[n] * row_sum[m], with codes and zero points less 8. This saves bytes of weights, not multiplications: the
// ceiling is the rate of 8-bit products.

#include "int4_gemm.cuh"

KERNEL void __launch_bounds__(THREADS) gemm_w4a8(const u8* a, const Int4Weights weights, const Epilogue e, s32 m, s32 n,
                                                 s32 k, s32 lda, void* partial, u32* arrivals) {
  DYNAMIC_SHARED(shared);
  Int4Gemm<StepW4A8>::run(a, lda, weights, e, m, n, k, partial, arrivals, shared);
}
