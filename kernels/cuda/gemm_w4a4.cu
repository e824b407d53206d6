// gemm_w4a4: 4-bit weights times 4-bit activations on 8-bit tensor cores, exact, for architectures without 4-bit ones.
//
// Both operands are words of 8 codes, unpacked to 16 times the code (src/int4.cuh shows the bits). The block is the one of
// src/int4_gemm.cuh, with 4-bit rows in A, too; with the default tile 128 x 128:
//
//                 channels, 128                       a stage: 128 rows of 32 bytes of A and 128 of W, 8 KiB; five of them
//              ┌──────────┬──────────┐
//     rows     │ warp 0   │ warp 1   │  32             a warp: 32 rows by 64 channels = 4 x 4 tiles of 8 rows by
//     of A,    ├──────────┼──────────┤                 16 channels: 64 sums a thread
//     128      │   ...    │   ...    │
//              ├──────────┼──────────┤
//              │ warp 6   │ warp 7   │
//              └──────────┴──────────┘
//
// What a warp does in one step of K 64 for one of those tiles (lane = 4g + t):
//
//     a row, 32 bytes       │ word 0 │ word 1 │ word 2 │ word 3 │ word 4 │ word 5 │ word 6 │ word 7 │
//     one 8-byte load       └───── t = 0 ─────┴───── t = 1 ─────┴───── t = 2 ─────┴───── t = 3 ─────┘
//
//     product 1   A = (low | high) of words 2t       B = (low, high) of word 2t        one mma.m16n8k32.s8
//     product 2   the same with words 2t+1
//
//       A  channel g       a[0] = low, a[2] = high     C  channel g       c[0], c[1]: rows 2t, 2t + 1 of the tile
//          channel g + 8   a[1] = low, a[3] = high        channel g + 8   c[2], c[3]: the same rows
//       B  row g           b[0] = low, b[1] = high
//
// With scales by groups of 32 the words of a lane are t and t + 4, so that product 1 is the first group and product 2 the
// second.
//
// The sums are 256 times the true ones; the epilogue shifts that away. On sm_90 and later PTX still accepts `mma.s4` and
// compiles it to about 190 instructions per step; this is 18 to unpack. It reads half the bytes of an 8-bit product and
// does the same multiplications: where memory is not the limit, 8-bit codes are as fast.

#include "int4_gemm.cuh"

KERNEL void __launch_bounds__(THREADS) gemm_w4a4(const u8* a, const Int4Weights weights, const Epilogue e, s32 m, s32 n,
                                                 s32 k, s32 lda, void* partial, u32* arrivals) {
  DYNAMIC_SHARED(shared);
  Int4Gemm<StepW4A4>::run(a, lda, weights, e, m, n, k, partial, arrivals, shared);
}
