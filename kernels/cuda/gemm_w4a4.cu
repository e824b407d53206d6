// gemm_w4a4: 4-bit weights times 4-bit activations on 8-bit tensor cores, exact, for architectures without 4-bit ones.
//
// Both operands are words of 8 codes, unpacked to 16 times the code (src/int4.cuh); tiling as drawn in
// src/int4_gemm.cuh. In one step of K 64 a lane 4g + t holds words 2t and 2t+1 of channels g and g+8 and of row g:
//
//     product 1   A = (low | high) of words 2t       B = (low, high) of word 2t        one mma.m16n8k32.s8
//     product 2   the same with words 2t+1
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
