// gemm_s4_native: 4-bit weights times 4-bit activations on 4-bit tensor cores: sm_75, 80, 86, 87 and 89 have them.
//
// The same words as gemm_w4a4.cu and the same tiling (src/int4_gemm.cuh), without unpacking: a step of K 64 is one
// mma.m16n8k64.s4 with A = words 2t and 2t+1 of channels g and g+8, B = words 2t and 2t+1 of row g. On sm_75 that is four
// mma.m8n8k32.s4, which take the same registers one by one. Codes within a word are in an order of their own, the same in
// both operands, which a sum of products does not see. From sm_90 on this file compiles to an emulation; do not use it
// there.

#include "int4_gemm.cuh"

KERNEL void __launch_bounds__(THREADS) gemm_s4_native(const u8* a, const Int4Weights weights, const Epilogue e, s32 m,
                                                      s32 n, s32 k, s32 lda, void* partial, u32* arrivals) {
  DYNAMIC_SHARED(shared);
  Int4Gemm<StepS4>::run(a, lda, weights, e, m, n, k, partial, arrivals, shared);
}
