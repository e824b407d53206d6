// Machine: the operations that only this kind of processor has, each as one function around one instruction.
//
// Kernels never include this file; they use `primitives.cuh`, which builds on it and hides what an architecture lacks.
// Beside it only `hopper_machine.cuh` contains inline assembly or a CUDA intrinsic, so a test can replace these two files
// by a CPU implementation and run the very same kernels.
#pragma once

typedef signed char s8;
typedef unsigned char u8;
typedef short s16;
typedef unsigned short u16;
typedef int s32;
typedef unsigned int u32;
typedef long long s64;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__
// Dynamic shared memory as bytes; a kernel names it once.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) u8 name[]

struct alignas(16) Vector16 { u32 x, y, z, w; };  // what one thread loads or stores at once
struct alignas(8) Vector8 { u32 x, y; };

// Address of shared memory as the 32-bit number that ldmatrix, cp.async, wgmma and mbarriers take.
DEVICE u32 shared_address(const void* pointer) { return static_cast<u32>(__cvta_generic_to_shared(pointer)); }

DEVICE u32 lane_id() { return threadIdx.x & 31; }

// ---- integer tensor cores -------------------------------------------------------------------------------------------

#define MMA_8816(NAME, TYPE_A)                                                                                      \
  DEVICE void NAME(s32& c0, s32& c1, u32 a, u32 b) {                                                                \
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." TYPE_A ".s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};\n"           \
                 : "+r"(c0), "+r"(c1) : "r"(a), "r"(b));                                                            \
  }
MMA_8816(mma_m8n8k16_s8, "s8")
MMA_8816(mma_m8n8k16_u8s8, "u8")

#define MMA_8832(NAME, TYPE_A)                                                                                      \
  DEVICE void NAME(s32& c0, s32& c1, u32 a, u32 b) {                                                                \
    asm volatile("mma.sync.aligned.m8n8k32.row.col.s32." TYPE_A ".s4.s32 {%0,%1}, {%2}, {%3}, {%0,%1};\n"           \
                 : "+r"(c0), "+r"(c1) : "r"(a), "r"(b));                                                            \
  }
MMA_8832(mma_m8n8k32_s4, "s4")
MMA_8832(mma_m8n8k32_u4s4, "u4")

#if __CUDA_ARCH__ >= 800
#define MMA_16_ROWS(NAME, SHAPE, TYPE_A, TYPE_B)                                                                    \
  DEVICE void NAME(s32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {                                             \
    asm volatile("mma.sync.aligned." SHAPE ".row.col.s32." TYPE_A "." TYPE_B ".s32 "                                \
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"                                          \
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                               \
  }
MMA_16_ROWS(machine_m16n8k32_s8, "m16n8k32", "s8", "s8")
MMA_16_ROWS(machine_m16n8k32_u8s8, "m16n8k32", "u8", "s8")
MMA_16_ROWS(machine_m16n8k64_s4, "m16n8k64", "s4", "s4")
MMA_16_ROWS(machine_m16n8k64_u4s4, "m16n8k64", "u4", "s4")
#endif

// ---- floating-point tensor cores ------------------------------------------------------------------------------------

DEVICE void mma_m16n8k8_f16(float (&c)[4], u32 a0, u32 a1, u32 b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(b));
}

#define MMA_FLOAT(NAME, TYPE)                                                                                       \
  DEVICE void NAME(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {                                           \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                                     \
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"                                          \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                               \
  }
#if __CUDA_ARCH__ >= 800
MMA_FLOAT(machine_m16n8k16_f16, "f16")
#endif
// Nothing replaces bfloat16 before sm_80: the assembler rejects a kernel that uses it.
MMA_FLOAT(mma_m16n8k16_bf16, "bf16")

// ---- shared memory to fragments -------------------------------------------------------------------------------------

// N matrices of 8 rows of 16 bytes. Lane i names row i % 8 of matrix i / 8; register j of lane 4 g + t then holds bytes
// 4t..4t+3 of row g of matrix j. With 8-bit values that is a[j] or b[j] of the map above. Rows must be 16-byte aligned.
DEVICE void ldmatrix_x4(u32 (&r)[4], u32 row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}

DEVICE void ldmatrix_x2(u32 (&r)[2], u32 row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n" : "=r"(r[0]), "=r"(r[1]) : "r"(row)
               : "memory");
}

// The same with each 8 x 8 matrix of 16-bit values transposed.
DEVICE void ldmatrix_x4_transposed(u32 (&r)[4], u32 row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}

// ---- global to shared memory ----------------------------------------------------------------------------------------

#if __CUDA_ARCH__ >= 800
#define CP_ASYNC(NAME, CACHE, SIZE)                                                                                 \
  DEVICE void NAME(u32 destination, const void* source, u32 valid) {                                                \
    asm volatile("cp.async." CACHE ".shared.global [%0], [%1], " SIZE ", %2;\n"                                     \
                 ::"r"(destination), "l"(source), "r"(valid) : "memory");                                           \
  }
CP_ASYNC(machine_cp_async_16, "cg", "16")
CP_ASYNC(machine_cp_async_8, "ca", "8")
CP_ASYNC(machine_cp_async_4, "ca", "4")
DEVICE void machine_cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int PENDING>
DEVICE void machine_cp_async_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory"); }
#endif

DEVICE void store_shared_4(u32 destination, u32 word) {
  asm volatile("st.shared.u32 [%0], %1;\n" ::"r"(destination), "r"(word) : "memory");
}
DEVICE void store_shared_16(u32 destination, const Vector16& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"r"(destination), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// ---- memory that blocks share ---------------------------------------------------------------------------------------

// Adds to memory, without asking what was there.
DEVICE void add_in_memory(s32* address, s32 value) { atomicAdd(address, value); }
// Counts an arrival; true for the last of `expected`, after which the counter is 0 again.
DEVICE bool count_in_memory(u32* counter, u32 expected) { return atomicInc(counter, expected - 1) == expected - 1; }
// What was written before is visible to other blocks before what is written behind.
DEVICE void fence_device() { __threadfence(); }
// Reads past this multiprocessor's own cache, which does not follow other blocks' additions.
DEVICE s32 load_from_l2(const s32* address) { return __ldcg(address); }

// ---- between the lanes of a warp ------------------------------------------------------------------------------------

// All 32 lanes take part.
DEVICE u32 shuffle(u32 value, int from_lane) { return __shfl_sync(0xffffffffu, value, from_lane); }
DEVICE u32 shuffle_xor(u32 value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE float shuffle(float value, int from_lane) { return __shfl_sync(0xffffffffu, value, from_lane); }
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE s32 shuffle_xor(s32 value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE void sync_warp() { __syncwarp(); }

// ---- words ----------------------------------------------------------------------------------------------------------

// c + the four products of the bytes of a and b.
DEVICE s32 dot4_s8(u32 a, u32 b, s32 c) { return __dp4a(static_cast<s32>(a), static_cast<s32>(b), c); }
DEVICE s32 dot4_u8s8(u32 a, u32 b, s32 c) {
  s32 d;
  asm("dp4a.u32.s32 %0, %1, %2, %3;\n" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// Any function of three bits, applied to each bit position: TABLE is f(0xF0, 0xCC, 0xAA).
template <u32 TABLE>
DEVICE u32 bitwise3(u32 a, u32 b, u32 c) {
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, %4;\n" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
  return d;
}

// Byte i of the result is byte (selector >> 4i) & 7 of the eight bytes {a, b}, a holding the numbers 0 to 3.
DEVICE u32 permute_bytes(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }

// ---- numbers: nothing here may be fused or reordered, results are compared bit for bit ------------------------------

DEVICE s32 round_half_even(float x) { return __float2int_rn(x); }  // saturates; NaN gives 0
DEVICE float multiply(float x, float y) { return __fmul_rn(x, y); }
DEVICE float add(float x, float y) { return __fadd_rn(x, y); }
DEVICE float divide(float x, float y) { return __fdiv_rn(x, y); }
DEVICE float fused_multiply_add(float x, float y, float z) { return __fmaf_rn(x, y, z); }
DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 float_to_bits(float x) { return __float_as_uint(x); }

// IEEE half precision as its 16 bits, rounded half to even.
DEVICE u16 float_to_half(float x) {
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;\n" : "=h"(h) : "f"(x));
  return h;
}
DEVICE float half_to_float(u16 h) {
  float x;
  asm("cvt.f32.f16 %0, %1;\n" : "=f"(x) : "h"(h));
  return x;
}

// Two halves at once.
DEVICE u32 half2_multiply(u32 x, u32 y) {
  u32 z;
  asm("mul.rn.f16x2 %0, %1, %2;\n" : "=r"(z) : "r"(x), "r"(y));
  return z;
}
DEVICE u32 half2_subtract(u32 x, u32 y) {
  u32 z;
  asm("sub.rn.f16x2 %0, %1, %2;\n" : "=r"(z) : "r"(x), "r"(y));
  return z;
}
DEVICE u32 half2_fused_multiply_add(u32 x, u32 y, u32 z) {
  u32 r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;\n" : "=r"(r) : "r"(x), "r"(y), "r"(z));
  return r;
}
DEVICE u32 bfloat162_fused_multiply_add(u32 x, u32 y, u32 z) {
  u32 r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(r) : "r"(x), "r"(y), "r"(z));
  return r;
}
