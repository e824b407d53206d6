// The CPU's version of kernels/cuda/src/machine.cuh: the same functions, each instruction computed from its definition
// in the PTX manual ("Matrix fragments for mma" and following).
#pragma once

#include "runtime.hpp"


typedef signed char s8;
typedef unsigned char u8;
typedef short s16;
typedef unsigned short u16;
typedef int s32;
typedef unsigned int u32;
typedef long long s64;
typedef unsigned long long u64;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __constant__ static
#define __grid_constant__
#define __shared__ static
#define __align__(n) alignas(n)
#define DEVICE inline
#define KERNEL extern "C"
#define DYNAMIC_SHARED(name) u8* const name = simt::block.shared
#define threadIdx (simt::current->index)
#define blockIdx (simt::block.block_index)
#define blockDim (simt::block.block_dim)
#define gridDim (simt::block.grid_dim)
#define __syncthreads() simt::barrier(0, static_cast<unsigned>(simt::block.threads.size()))

using std::max;
using std::min;

struct alignas(16) Vector16 { u32 x, y, z, w; };
struct alignas(8) Vector8 { u32 x, y; };

DEVICE u32 shared_address(const void* pointer) { return simt::shared_offset(pointer, "shared_address"); }
DEVICE u32 lane_id() { return threadIdx.x & 31; }

namespace simt {

struct Fragments {
  u32 a[4], b[2];
  s32 c[4];
};
struct FloatFragments {
  u32 a[4], b[2];
  float c[4];
};
struct Nothing {};

template <int BITS, bool SIGNED>
s32 field(u32 word, unsigned i) {
  const u32 value = word >> (i * BITS) & ((1u << BITS) - 1);
  return SIGNED && value >> (BITS - 1) ? static_cast<s32>(value) - (1 << BITS) : static_cast<s32>(value);
}

// m8n8kK, K = 128 / BITS... one register of A and B: row (column) g = lane / 4, values 4t and on along K.
template <int BITS, bool SIGNED_A>
void quarter(const Fragments* in, Fragments* out) {
  constexpr unsigned PER = 32 / BITS;
  for (unsigned lane = 0; lane < WARP; ++lane)
    for (unsigned i = 0; i < 2; ++i) {
      const unsigned row = lane / 4, column = lane % 4 * 2 + i;
      s64 sum = in[lane].c[i];
      for (unsigned t = 0; t < 4; ++t)
        for (unsigned j = 0; j < PER; ++j)
          sum += field<BITS, SIGNED_A>(in[row * 4 + t].a[0], j) * field<BITS, true>(in[column * 4 + t].b[0], j);
      out[lane].c[i] = static_cast<s32>(static_cast<u32>(sum));
    }
}

// m16n8k(8 * 32 / BITS): a[i] is row g + 8 (i & 1), b[i] column g; both hold the K values of half i (>> 1 for A).
template <int BITS, bool SIGNED_A>
void whole(const Fragments* in, Fragments* out) {
  constexpr unsigned PER = 32 / BITS, K = 8 * PER;
  static thread_local s32 a[16][K], b[8][K];
  for (unsigned lane = 0; lane < WARP; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned j = 0; j < PER; ++j) {
      for (unsigned i = 0; i < 4; ++i)
        a[g + 8 * (i & 1)][(i >> 1) * K / 2 + t * PER + j] = field<BITS, SIGNED_A>(in[lane].a[i], j);
      for (unsigned i = 0; i < 2; ++i) b[g][i * K / 2 + t * PER + j] = field<BITS, true>(in[lane].b[i], j);
    }
  }
  for (unsigned lane = 0; lane < WARP; ++lane)
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + 8 * (i >> 1), column = lane % 4 * 2 + (i & 1);
      s32 sum = 0;
      for (unsigned k = 0; k < K; ++k) sum += a[row][k] * b[column][k];
      out[lane].c[i] = static_cast<s32>(static_cast<u32>(in[lane].c[i]) + static_cast<u32>(sum));
    }
}

inline float half_value(u16 bits) {
  _Float16 h;
  memcpy(&h, &bits, 2);
  return static_cast<float>(h);
}
inline u16 half_bits(_Float16 h) {
  u16 bits;
  memcpy(&bits, &h, 2);
  return bits;
}
inline float bfloat16_value(u16 bits) {
  const u32 wide = static_cast<u32>(bits) << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}

// m16n8k(8 * HALVES) of 16-bit floats, products and sums in double, rounded once.
template <unsigned HALVES, float (*VALUE)(u16)>
void float_product(const FloatFragments* in, FloatFragments* out) {
  double a[16][16], b[8][16];
  for (unsigned lane = 0; lane < WARP; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned j = 0; j < 2; ++j) {
      for (unsigned i = 0; i < 2 * HALVES; ++i)
        a[g + 8 * (i & 1)][(i >> 1) * 8 + 2 * t + j] = VALUE(static_cast<u16>(in[lane].a[i] >> (16 * j)));
      for (unsigned i = 0; i < HALVES; ++i) b[g][i * 8 + 2 * t + j] = VALUE(static_cast<u16>(in[lane].b[i] >> (16 * j)));
    }
  }
  for (unsigned lane = 0; lane < WARP; ++lane)
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + 8 * (i >> 1), column = lane % 4 * 2 + (i & 1);
      double sum = in[lane].c[i];
      for (unsigned k = 0; k < 8 * HALVES; ++k) sum += a[row][k] * b[column][k];
      out[lane].c[i] = static_cast<float>(sum);
    }
}

template <unsigned MATRICES, bool TRANSPOSED>
struct Rows { u32 row; };
template <unsigned MATRICES>
struct Registers { u32 r[MATRICES]; };

template <unsigned MATRICES, bool TRANSPOSED>
void load_matrices(const Rows<MATRICES, TRANSPOSED>* in, Registers<MATRICES>* out) {
  for (unsigned m = 0; m < MATRICES; ++m) {
    u16 matrix[8][8];
    unsigned in_bank[8] = {};
    for (unsigned r = 0; r < 8; ++r) {
      const u32 address = in[m * 8 + r].row;
      memcpy(matrix[r], shared_pointer(address, 16, 16, "ldmatrix"), 16);
      ++in_bank[address / 16 % 8];  // 8 rows of 16 bytes fill the 32 banks once, unless two start in the same four
    }
    ++block.statistics.ldmatrix_rows_of_eight;
    unsigned worst = 1;
    for (unsigned bank = 0; bank < 8; ++bank) worst = in_bank[bank] > worst ? in_bank[bank] : worst;
    block.statistics.ldmatrix_conflicts += worst - 1;
    for (unsigned lane = 0; lane < WARP; ++lane) {
      const unsigned g = lane / 4, t = lane % 4;
      const u16 low = TRANSPOSED ? matrix[2 * t][g] : matrix[g][2 * t];
      const u16 high = TRANSPOSED ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      out[lane].r[m] = low | static_cast<u32>(high) << 16;
    }
  }
}

template <class T>
struct Offer {
  T value;
  int lane;
};
template <class T>
void exchange(const Offer<T>* in, T* out) {
  for (unsigned lane = 0; lane < WARP; ++lane) {
    if (in[lane].lane < 0 || in[lane].lane >= static_cast<int>(WARP)) fail("shuffle from lane %d", in[lane].lane);
    out[lane] = in[in[lane].lane].value;
  }
}
template <class T>
T shuffle_from(T value, int lane) {
  Offer<T> offer{value, lane};
  T result = value;
  collective("shuffle", offer, result, exchange<T>);
  return result;
}

inline void run_quarter(const char* name, s32& c0, s32& c1, u32 a, u32 b, void (*compute)(const Fragments*, Fragments*)) {
  Fragments in{{a}, {b}, {c0, c1}}, out{};
  collective(name, in, out, compute);
  c0 = out.c[0];
  c1 = out.c[1];
}
template <class F, class T>
void run_whole(const char* name, T (&c)[4], const u32 (&a)[4], const u32 (&b)[2], void (*compute)(const F*, F*)) {
  F in{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}}, out{};
  collective(name, in, out, compute);
  for (int i = 0; i < 4; ++i) c[i] = out.c[i];
}

}  // namespace simt

#define SIMT_QUARTER(NAME, BITS, SIGNED_A)                                      \
  DEVICE void NAME(s32& c0, s32& c1, u32 a, u32 b) {                            \
    simt::run_quarter(#NAME, c0, c1, a, b, simt::quarter<BITS, SIGNED_A>);      \
  }
SIMT_QUARTER(mma_m8n8k16_s8, 8, true)
SIMT_QUARTER(mma_m8n8k16_u8s8, 8, false)
SIMT_QUARTER(mma_m8n8k32_s4, 4, true)
SIMT_QUARTER(mma_m8n8k32_u4s4, 4, false)

DEVICE void mma_m16n8k8_f16(float (&c)[4], u32 a0, u32 a1, u32 b) {
  simt::run_whole("mma_m16n8k8_f16", c, {a0, a1, 0, 0}, {b, 0}, simt::float_product<1, simt::half_value>);
}

#if __CUDA_ARCH__ >= 800
#define SIMT_WHOLE(NAME, FRAGMENTS, TYPE, COMPUTE)                              \
  DEVICE void NAME(TYPE (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {        \
    simt::run_whole<simt::FRAGMENTS>(#NAME, c, a, b, simt::COMPUTE);            \
  }
#define SIMT_COMMA ,
SIMT_WHOLE(machine_m16n8k32_s8, Fragments, s32, whole<8 SIMT_COMMA true>)
SIMT_WHOLE(machine_m16n8k32_u8s8, Fragments, s32, whole<8 SIMT_COMMA false>)
SIMT_WHOLE(machine_m16n8k64_s4, Fragments, s32, whole<4 SIMT_COMMA true>)
SIMT_WHOLE(machine_m16n8k64_u4s4, Fragments, s32, whole<4 SIMT_COMMA false>)
SIMT_WHOLE(machine_m16n8k16_f16, FloatFragments, float, float_product<2 SIMT_COMMA simt::half_value>)
SIMT_WHOLE(mma_m16n8k16_bf16, FloatFragments, float, float_product<2 SIMT_COMMA simt::bfloat16_value>)

DEVICE void machine_cp_async_16(u32 d, const void* s, u32 valid) { simt::cp_async(d, s, 16, valid); }
DEVICE void machine_cp_async_8(u32 d, const void* s, u32 valid) { simt::cp_async(d, s, 8, valid); }
DEVICE void machine_cp_async_4(u32 d, const void* s, u32 valid) { simt::cp_async(d, s, 4, valid); }
DEVICE void machine_cp_async_commit() { simt::cp_async_commit(); }
template <int PENDING>
DEVICE void machine_cp_async_wait() { simt::cp_async_wait(PENDING); }
#endif

DEVICE void ldmatrix_x4(u32 (&r)[4], u32 row) {
  simt::Rows<4, false> in{row};
  simt::Registers<4> out{};
  simt::collective("ldmatrix_x4", in, out, simt::load_matrices<4, false>);
  memcpy(r, out.r, sizeof r);
}
DEVICE void ldmatrix_x2(u32 (&r)[2], u32 row) {
  simt::Rows<2, false> in{row};
  simt::Registers<2> out{};
  simt::collective("ldmatrix_x2", in, out, simt::load_matrices<2, false>);
  memcpy(r, out.r, sizeof r);
}
DEVICE void ldmatrix_x4_transposed(u32 (&r)[4], u32 row) {
  simt::Rows<4, true> in{row};
  simt::Registers<4> out{};
  simt::collective("ldmatrix_x4_transposed", in, out, simt::load_matrices<4, true>);
  memcpy(r, out.r, sizeof r);
}

DEVICE void store_shared_4(u32 destination, u32 word) {
  memcpy(simt::shared_pointer(destination, 4, 4, "st.shared"), &word, 4);
}
DEVICE void store_shared_16(u32 destination, const Vector16& v) {
  memcpy(simt::shared_pointer(destination, 16, 16, "st.shared"), &v, 16);
}

DEVICE u32 shuffle(u32 value, int from_lane) { return simt::shuffle_from(value, from_lane); }
DEVICE float shuffle(float value, int from_lane) { return simt::shuffle_from(value, from_lane); }
DEVICE u32 shuffle_xor(u32 value, int mask) { return simt::shuffle_from(value, static_cast<int>(lane_id()) ^ mask); }
DEVICE float shuffle_xor(float value, int mask) { return simt::shuffle_from(value, static_cast<int>(lane_id()) ^ mask); }
DEVICE s32 shuffle_xor(s32 value, int mask) { return simt::shuffle_from(value, static_cast<int>(lane_id()) ^ mask); }
DEVICE void sync_warp() {
  simt::Nothing in, out;
  simt::collective("sync_warp", in, out, +[](const simt::Nothing*, simt::Nothing*) {});
}

DEVICE s32 dot4_s8(u32 a, u32 b, s32 c) {
  for (unsigned i = 0; i < 4; ++i) c += simt::field<8, true>(a, i) * simt::field<8, true>(b, i);
  return c;
}
DEVICE s32 dot4_u8s8(u32 a, u32 b, s32 c) {
  for (unsigned i = 0; i < 4; ++i) c += simt::field<8, false>(a, i) * simt::field<8, true>(b, i);
  return c;
}
template <u32 TABLE>
DEVICE u32 bitwise3(u32 a, u32 b, u32 c) {
  u32 d = 0;
  for (unsigned i = 0; i < 8; ++i)
    if (TABLE >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return d;
}
DEVICE u32 permute_bytes(u32 a, u32 b, u32 selector) {
  const u64 both = static_cast<u64>(b) << 32 | a;
  u32 d = 0;
  for (unsigned i = 0; i < 4; ++i) d |= static_cast<u32>(both >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return d;
}

DEVICE s32 round_half_even(float x) {
  if (__builtin_isnan(x)) return 0;
  const double rounded = __builtin_nearbyint(static_cast<double>(x));
  return rounded >= 2147483647.0 ? 2147483647 : rounded <= -2147483648.0 ? -2147483647 - 1 : static_cast<s32>(rounded);
}
DEVICE float multiply(float x, float y) { return x * y; }
DEVICE float add(float x, float y) { return x + y; }
DEVICE float divide(float x, float y) { return x / y; }
DEVICE float fused_multiply_add(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
DEVICE float bits_to_float(u32 bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
DEVICE u32 float_to_bits(float x) {
  u32 bits;
  memcpy(&bits, &x, 4);
  return bits;
}
DEVICE u16 float_to_half(float x) { return simt::half_bits(static_cast<_Float16>(x)); }
DEVICE float half_to_float(u16 h) { return simt::half_value(h); }

#define SIMT_PAIRWISE(EXPRESSION)                                             \
  u32 result = 0;                                                             \
  for (unsigned i = 0; i < 2; ++i) {                                          \
    const double a = simt::half_value(static_cast<u16>(x >> (16 * i)));       \
    const double b = simt::half_value(static_cast<u16>(y >> (16 * i)));       \
    result |= static_cast<u32>(simt::half_bits(static_cast<_Float16>(EXPRESSION))) << (16 * i); \
  }                                                                           \
  return result;
DEVICE u32 half2_multiply(u32 x, u32 y) { SIMT_PAIRWISE(a * b) }
DEVICE u32 half2_subtract(u32 x, u32 y) { SIMT_PAIRWISE(a - b) }
DEVICE u32 half2_fused_multiply_add(u32 x, u32 y, u32 z) {
  SIMT_PAIRWISE(a * b + simt::half_value(static_cast<u16>(z >> (16 * i))))
}
#if __CUDA_ARCH__ >= 800
// Exact for the small integers that kernels convert; a result that bfloat16 cannot hold is an error and not rounded.
DEVICE u32 bfloat162_fused_multiply_add(u32 x, u32 y, u32 z) {
  u32 result = 0;
  for (unsigned i = 0; i < 32; i += 16) {
    const float exact = simt::bfloat16_value(static_cast<u16>(x >> i)) * simt::bfloat16_value(static_cast<u16>(y >> i)) +
                        simt::bfloat16_value(static_cast<u16>(z >> i));
    u32 bits;
    memcpy(&bits, &exact, 4);
    if (bits & 0xffff) simt::fail("bfloat16 cannot hold %g", static_cast<double>(exact));
    result |= bits >> 16 << i;
  }
  return result;
}
#endif

// Blocks run one after another, so atomic operations are plain ones.
template <class T>
DEVICE T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}
DEVICE void __threadfence() {}
DEVICE void add_in_memory(s32* address, s32 value) { *address += value; }
DEVICE bool count_in_memory(u32* counter, u32 expected) {
  const bool last = *counter + 1 >= expected;
  *counter = last ? 0 : *counter + 1;
  return last;
}
DEVICE void fence_device() {}
DEVICE s32 load_from_l2(const s32* address) { return *address; }
