// gemm_s4_native: 4-bit weights times 4-bit activations on 4-bit tensor cores: sm_75, 80, 86, 87 and 89 have them.
//
// Words, tiles and stages are those that gemm_w4a4.cu draws, under src/int4_gemm.cuh; only the product differs. Nothing is
// unpacked: a step of K 64 is one mma.m16n8k64.s4. What it takes from lane 4g + t, for a tile of 16 channels by 8 rows:
//
//     a row, 32 bytes       │ word 0 │ word 1 │ word 2 │ word 3 │ word 4 │ word 5 │ word 6 │ word 7 │
//     one 8-byte load       └───── t = 0 ─────┴───── t = 1 ─────┴───── t = 2 ─────┴───── t = 3 ─────┘
//
//                            word 2t   word 2t + 1
//       A  channel g           a[0]       a[2]          C  channel g       c[0], c[1]: rows 2t, 2t + 1 of the tile
//          channel g + 8       a[1]       a[3]             channel g + 8   c[2], c[3]: the same rows
//       B  row g               b[0]       b[1]
//
// On sm_75 that is four mma.m8n8k32.s4 of one register each: (a[0], b[0]) and (a[2], b[1]) into c[0] and c[1], (a[1], b[0])
// and (a[3], b[1]) into c[2] and c[3]. Codes within a word are in an order of their own (`kernels.cuda.packing`), the same
// in both operands, which a sum of products does not see:
//
//     bits of word w         3..0   7..4   11..8  15..12  19..16  23..20  27..24  31..28
//     k                      8w     8w+4   8w+1   8w+5    8w+2    8w+6    8w+3    8w+7
//
// The sums carry no factor. Groups of 32 are refused: one product covers two of them. From sm_90 on this file compiles to
// an emulation; do not use it there.

#include "int4_gemm.cuh"

KERNEL void __launch_bounds__(THREADS) gemm_s4_native(const u8* a, const Int4Weights weights, const Epilogue e, s32 m,
                                                      s32 n, s32 k, s32 lda, void* partial, u32* arrivals) {
  DYNAMIC_SHARED(shared);
  Int4Gemm<StepS4>::run(a, lda, weights, e, m, n, k, partial, arrivals, shared);
}
