// Primitives: the operations that kernels are written in. What an architecture lacks is made up for here, so that a
// kernel has one text for all of them. No kernel contains inline assembly or includes a CUDA header.
//
// Fragments of mma.sync.m16n8k32 (8 bit). lane = 4 g + t, with g in 0..7 and t in 0..3; each register holds 4 values
// that are neighbours along K:
//
//            k = 4t..4t+3   k = 16+4t..             n = g                         n = 2t  2t+1
//   A  row g     a[0]           a[2]      B  k = 4t..    b[0]      C  row g       c[0]  c[1]
//   (16x32) g+8  a[1]           a[3]  (32x8) k = 16+4t.. b[1]  (16x8) row g+8     c[2]  c[3]
//
// m16n8k64 (4 bit) is the same map with 8 values a register, m16n8k16 (16 bit) with 2. On sm_75, m8n8k16 and m8n8k32
// take one register of A and B: they are the quarters (a[i], b[i/2]) of the big instruction, register for register, so
// the fallback needs no other layout.
#pragma once

#include "machine.cuh"

// ---- tensor cores: one 16 x 8 tile of C += A B ----------------------------------------------------------------------

#if __CUDA_ARCH__ >= 800
#define MMA_FROM_QUARTERS(NAME, MACHINE, QUARTER)                                                                   \
  DEVICE void NAME(s32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { MACHINE(c, a, b); }
#else
#define MMA_FROM_QUARTERS(NAME, MACHINE, QUARTER)                                                                   \
  DEVICE void NAME(s32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {                                             \
    QUARTER(c[0], c[1], a[0], b[0]);                                                                                \
    QUARTER(c[2], c[3], a[1], b[0]);                                                                                \
    QUARTER(c[0], c[1], a[2], b[1]);                                                                                \
    QUARTER(c[2], c[3], a[3], b[1]);                                                                                \
  }
#endif
MMA_FROM_QUARTERS(mma_m16n8k32_s8, machine_m16n8k32_s8, mma_m8n8k16_s8)
MMA_FROM_QUARTERS(mma_m16n8k32_u8s8, machine_m16n8k32_u8s8, mma_m8n8k16_u8s8)
MMA_FROM_QUARTERS(mma_m16n8k64_s4, machine_m16n8k64_s4, mma_m8n8k32_s4)
MMA_FROM_QUARTERS(mma_m16n8k64_u4s4, machine_m16n8k64_u4s4, mma_m8n8k32_u4s4)

// sm_75 has f16 only as m16n8k8: the halves (a[0], a[1]; b[0]) and (a[2], a[3]; b[1]) of m16n8k16. bf16
// (mma_m16n8k16_bf16) it lacks altogether.
DEVICE void mma_m16n8k16_f16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  machine_m16n8k16_f16(c, a, b);
#else
  mma_m16n8k8_f16(c, a[0], a[1], b[0]);
  mma_m16n8k8_f16(c, a[2], a[3], b[1]);
#endif
}

// ---- global to shared memory ----------------------------------------------------------------------------------------

// Copies the first `valid` of 16 (8, 4) bytes and zeroes the rest; with `valid` 0 the source is not read. Source and
// destination are aligned to the size. Asynchronous from sm_80 on; before, the copy is done when the call returns.
#if __CUDA_ARCH__ >= 800
DEVICE void cp_async_16(u32 destination, const void* source, u32 valid) {
  machine_cp_async_16(destination, source, valid);
}
DEVICE void cp_async_8(u32 destination, const void* source, u32 valid) {
  machine_cp_async_8(destination, source, valid);
}
DEVICE void cp_async_4(u32 destination, const void* source, u32 valid) {
  machine_cp_async_4(destination, source, valid);
}
// Closes a group of copies. cp_async_wait<P> waits until at most P of this thread's groups are under way; a barrier
// must follow before other threads read.
DEVICE void cp_async_commit() { machine_cp_async_commit(); }
template <int PENDING>
DEVICE void cp_async_wait() { machine_cp_async_wait<PENDING>(); }
#else
// The loops stay loops: they run at the edges only, and unrolled they are most of a kernel.
DEVICE u32 load_valid_bytes(const void* source, u32 valid) {
  if (valid >= 4) return *static_cast<const u32*>(source);
  u32 word = 0;
#pragma unroll 1
  for (u32 i = 0; i < valid; ++i) word |= static_cast<u32>(static_cast<const u8*>(source)[i]) << (8 * i);
  return word;
}
DEVICE void copy_words(u32 destination, const void* source, u32 valid, u32 size) {
#pragma unroll 1
  for (u32 i = 0; i < size; i += 4)
    store_shared_4(destination + i, load_valid_bytes(static_cast<const u8*>(source) + i, valid > i ? valid - i : 0));
}
DEVICE void cp_async_4(u32 destination, const void* source, u32 valid) {
  store_shared_4(destination, load_valid_bytes(source, valid));
}
DEVICE void cp_async_8(u32 destination, const void* source, u32 valid) { copy_words(destination, source, valid, 8); }
DEVICE void cp_async_16(u32 destination, const void* source, u32 valid) {
  if (valid == 16) store_shared_16(destination, *static_cast<const Vector16*>(source));
  else copy_words(destination, source, valid, 16);
}
DEVICE void cp_async_commit() {}
template <int PENDING>
DEVICE void cp_async_wait() {}
#endif

// ---- words and numbers ----------------------------------------------------------------------------------------------

DEVICE u32 pack_halves(u16 low, u16 high) { return static_cast<u32>(low) | static_cast<u32>(high) << 16; }

// bfloat16 as its 16 bits, rounded half to even; plain integer work, so that every architecture has it.
DEVICE u16 float_to_bfloat16(float x) {
  const u32 bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<u16>(bits >> 16 | 0x40);  // NaN stays NaN
  return static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
DEVICE float bfloat16_to_float(u16 b) { return bits_to_float(static_cast<u32>(b) << 16); }
