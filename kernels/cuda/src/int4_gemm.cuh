// Matrix product with 4-bit weights: out[m][n] = sum over k of x[m][k] * w[n][k], then the epilogue.
//
//                          n: BLOCK_N channels
//                   ┌──────────┬──────────┬─────┐        A thread block owns BLOCK_M x BLOCK_N of the output, a warp a
//                   │ warp 0,0 │ warp 0,1 │ ... │        BLOCK_M / WARPS_M x BLOCK_N / WARPS_N part of it, made of
//   m: BLOCK_M rows ├──────────┼──────────┼─────┤        16 x 8 accumulator tiles. Unpacked weights stay in registers
//                   │ warp 1,0 │ warp 1,1 │ ... │        while the rows of the warp's part pass by, so unpacking costs
//                   └──────────┴──────────┴─────┘        6 operations per 8 channels and K 64, however many rows.
//
// K is walked in steps of 64 through a ring of STAGES stages of shared memory filled by cp.async:
//
//   stage   ┌ x: BLOCK_M rows of 64 bytes (8 bit) or 32 bytes (4 bit)
//           ├ w: BLOCK_N rows of 32 bytes
//           └ ratios: BLOCK_N halves, two rows of them for groups of 32 (GROUP > 0 only)
//
// Rows lie one behind the other without padding: eight lanes of a 16-byte load read 128 neighbouring bytes.
//
// Scales by group (GROUP > 0): integer sums of one group are turned into floats and added to float accumulators times
// the group's ratio. The conversion is free: sums start at MAGIC, the bits of 1.5 * 2^23, where an integer added to the
// bits is the same integer added to the value, up to 2^22 = 16384 * 256. So larger groups are flushed every 256.
//
// M, N and K need not divide anything: rows outside are read as zeroes and never written, K ends in zeroes on both
// sides. Split-K (grid.z slices) serves small M and N; see split_k.cuh.
#pragma once

#include "epilogue.cuh"
#include "int4.cuh"
#include "split_k.cuh"

struct Int4Gemm {
  const void* x;           // (M, ld_x bytes): s8 codes, or words of 4-bit codes
  const u8* words;         // (N, padded K / 2 bytes)
  const u16* ratios;       // (groups, ld_ratios) halves, ld_ratios a multiple of 8; GROUP > 0 only
  const s32* zero_points;  // (N) in the range of code - 8, or null; GROUP == 0 only
  const s32* row_sums;     // (M) sums of x over K, beside zero_points
  void* workspace;         // split-K only
  u32* arrivals;
  s32 m, n, k;
  s32 ld_x;
  s32 ld_ratios;
  s32 slices;              // of K = gridDim.z
};

constexpr s32 MAGIC = 0x4B400000;
constexpr float MAGIC_VALUE = 12582912.0f;
constexpr int MAGIC_K = 256;
constexpr int STEP_K = 64;
constexpr int BAND = 8;

// 16 bytes of a row that is aligned to 16, to 4 or not at all, zero behind `valid`.
DEVICE void copy_chunk(u8* to, const u8* from, s32 valid, u32 misaligned) {
  valid = valid < 0 ? 0 : valid > 16 ? 16 : valid;
  if (misaligned == 0) {
    cp_async_16(shared_address(to), from, valid);
  } else if (misaligned % 4 == 0) {
#pragma unroll
    for (int i = 0; i < 16; i += 4) cp_async_4(shared_address(to + i), from + (valid > i ? i : 0), valid <= i ? 0 : valid - i < 4 ? valid - i : 4);
  } else {
    for (int i = 0; i < 16; ++i) to[i] = i < valid ? from[i] : 0;
  }
}

template <class Step, int BLOCK_M, int BLOCK_N, int WARPS_M, int WARPS_N, int STAGES, int GROUP, int OUT>
struct Int4Tile {
  static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
  static constexpr int M_TILES = BLOCK_M / WARPS_M / 16, N_TILES = BLOCK_N / WARPS_N / 8;
  static constexpr int TILES = M_TILES * N_TILES;
  static constexpr int RATIO_ROWS = GROUP == 0 ? 0 : GROUP == 32 ? 2 : 1;
  static constexpr int X_AT = 0, W_AT = BLOCK_M * Step::X_BYTES, RATIO_AT = W_AT + BLOCK_N * 32;
  static constexpr int STAGE_BYTES = RATIO_AT + RATIO_ROWS * BLOCK_N * 2;
  static constexpr int FLUSH_STEPS = (GROUP < MAGIC_K ? GROUP < STEP_K ? STEP_K : GROUP : MAGIC_K) / STEP_K;
  static constexpr WordOrder ORDER = GROUP == 32 ? HALVES : ADJACENT;
  static constexpr bool STAGED = sizeof(typename OutputType<OUT>::type) < 4;
  static constexpr int OUT_PITCH = BLOCK_N + 16 / sizeof(typename OutputType<OUT>::type);
  static_assert(BLOCK_M % (16 * WARPS_M) == 0 && BLOCK_N % (8 * WARPS_N) == 0, "warps own whole tiles");
  static_assert(GROUP == 0 || GROUP == 32 || GROUP % STEP_K == 0, "a step holds whole groups, or a group whole steps");
  static_assert(GROUP <= MAGIC_K || GROUP % MAGIC_K == 0, "a group is flushed in equal parts");
  static_assert(GROUP != 32 || Step::SHIFT > 0, "the native instruction covers 64 k at once");

  static DEVICE void load_stage(u8* stage, const Int4Gemm& a, s32 row0, s32 column0, s32 step, u32 misaligned) {
    constexpr int X_CHUNKS = Step::X_BYTES / 16;
    const s32 row_bytes = Step::X_BYTES == STEP_K ? a.k : (a.k + STEP_K - 1) / STEP_K * 32;
    for (int i = threadIdx.x; i < BLOCK_M * X_CHUNKS; i += THREADS) {
      const int r = i / X_CHUNKS, c = i % X_CHUNKS;
      const s32 at = step * Step::X_BYTES + 16 * c;
      const bool inside = row0 + r < a.m && at < row_bytes;
      const u8* from = static_cast<const u8*>(a.x) + (inside ? static_cast<s64>(row0 + r) * a.ld_x + at : 0);
      const int place = X_CHUNKS == 4 ? c ^ bank(r) : c;
      copy_chunk(stage + X_AT + r * Step::X_BYTES + 16 * place, from, inside ? row_bytes - at : 0, misaligned);
    }
    const s64 ld_words = static_cast<s64>((a.k + STEP_K - 1) / STEP_K) * 32;
    for (int i = threadIdx.x; i < BLOCK_N * 2; i += THREADS) {
      const int r = i / 2, c = i % 2;
      const bool inside = column0 + r < a.n;
      const u8* from = a.words + (inside ? (column0 + r) * ld_words + step * 32 + 16 * c : 0);
      cp_async_16(shared_address(stage + W_AT + r * 32 + 16 * c), from, inside ? 16 : 0);
    }
    if constexpr (GROUP > 0) {
      constexpr int CHUNKS = BLOCK_N / 8;
      const s32 groups = (a.k + GROUP - 1) / GROUP;
      for (int i = threadIdx.x; i < RATIO_ROWS * CHUNKS; i += THREADS) {
        const int r = i / CHUNKS, c = i % CHUNKS;
        const s32 group = (step * STEP_K + r * GROUP) / GROUP;
        const bool inside = group < groups && column0 + 8 * c < a.ld_ratios;
        const u16* from = a.ratios + (inside ? static_cast<s64>(group) * a.ld_ratios + column0 + 8 * c : 0);
        cp_async_16(shared_address(stage + RATIO_AT + r * BLOCK_N * 2 + 16 * c), from, inside ? 16 : 0);
      }
    }
  }

  static DEVICE void reset(s32 (&c)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] = GROUP > 0 ? MAGIC : 0;
  }

  // Adds one tile, times its group's ratios, to the totals and starts it again.
  static DEVICE void flush(s32 (&sum)[4], float (&total)[4], u32 ratio_pair) {
    const float even = half_to_float(static_cast<u16>(ratio_pair)), odd = half_to_float(static_cast<u16>(ratio_pair >> 16));
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      total[v] = fused_multiply_add(add(bits_to_float(static_cast<u32>(sum[v])), -MAGIC_VALUE), v % 2 ? odd : even, total[v]);
    }
    reset(sum);
  }

  static DEVICE void multiply_step(s32 (&sums)[TILES][4], float (&totals)[TILES][4], const u8* stage, int warp_m, int warp_n,
                                   bool group_ends) {
    const int lane = lane_id(), g = lane >> 2, t = lane & 3;
    const int column = warp_n * N_TILES * 8;
    const u16* ratios = reinterpret_cast<const u16*>(stage + RATIO_AT) + column + 2 * t;
    typename Step::W w[N_TILES];
#pragma unroll
    for (int j = 0; j < N_TILES; ++j) Step::template load_w<ORDER>(w[j], stage + W_AT + (column + 8 * j) * 32, g, t);
#pragma unroll
    for (int i = 0; i < M_TILES; ++i) {
      typename Step::X x;
      Step::template load_x<ORDER>(x, stage + X_AT + (warp_m * M_TILES + i) * 16 * Step::X_BYTES, g, t);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < N_TILES; ++j) {
          const int tile = i * N_TILES + j;
          Step::multiply(sums[tile], x, w[j], half);
          if constexpr (GROUP == 32) {
            flush(sums[tile], totals[tile], *reinterpret_cast<const u32*>(ratios + half * BLOCK_N + 8 * j));
          }
        }
      }
    }
    if constexpr (GROUP > 32) {
      if (!group_ends) return;
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
        flush(sums[tile], totals[tile], *reinterpret_cast<const u32*>(ratios + 8 * (tile % N_TILES)));
      }
    }
  }

  // Integer sums are complete; sums by groups are floats by now and carry the factor of the codes.
  static DEVICE typename OutputType<OUT>::type finished(const Int4Gemm& a, const Epilogue& e, s32 row, s32 column, s32 sum) {
    if (a.zero_points) sum -= a.zero_points[column] * a.row_sums[row];
    return finish<OUT>(e, row, column, sum);
  }
  static DEVICE typename OutputType<OUT>::type finished(const Int4Gemm&, const Epilogue& e, s32 row, s32 column, float total) {
    constexpr float PER_SUM = 1.0f / (1 << Step::SHIFT);
    return finish_scaled<OUT>(e, row, column, multiply(multiply(total, PER_SUM), e.scale[column]));
  }

  template <class Value>
  static DEVICE void write(const Int4Gemm& a, const Epilogue& e, const Value (&values)[TILES][4], u8* shared, s32 row0,
                           s32 column0, int warp_m, int warp_n) {
    typedef typename OutputType<OUT>::type Element;
    const int g = lane_id() >> 2, t = lane_id() & 3;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int r = (warp_m * M_TILES + tile / N_TILES) * 16 + g + (v & 2) * 4;
        const int c = (warp_n * N_TILES + tile % N_TILES) * 8 + 2 * t + (v & 1);
        if (row0 + r >= a.m || column0 + c >= a.n) continue;
        const Element y = finished(a, e, row0 + r, column0 + c, values[tile][v]);
        if constexpr (STAGED) reinterpret_cast<Element*>(shared)[r * OUT_PITCH + c] = y;
        else static_cast<Element*>(e.out)[static_cast<s64>(row0 + r) * e.ld_out + column0 + c] = y;
      }
    }
    if constexpr (STAGED) {
      __syncthreads();
      write_tile<OUT, BLOCK_M, BLOCK_N, OUT_PITCH, THREADS>(e, shared, row0, column0, a.m, a.n);
    }
  }

  // Sums of all slices, in the one block that writes them.
  template <class Value>
  static DEVICE void finish_tile(const Int4Gemm& a, const Epilogue& e, Value (&values)[TILES][4], u8* shared, s32 row0,
                                 s32 column0, int warp_m, int warp_n) {
    if (!gather_slices<TILES, THREADS>(values, static_cast<Value*>(a.workspace), a.arrivals, blockIdx.x, blockIdx.z, a.slices,
                                       reinterpret_cast<u32*>(shared))) return;
    __syncthreads();
    write(a, e, values, shared, row0, column0, warp_m, warp_n);
  }

  static DEVICE void run(const Int4Gemm& a, const Epilogue& e, u8* shared) {
    const int warp = threadIdx.x / 32, warp_m = warp / WARPS_N, warp_n = warp % WARPS_N;
    // Neighbouring blocks walk down BAND rows of tiles before they move on, so that both operands stay in L2.
    const s32 tiles_m = (a.m + BLOCK_M - 1) / BLOCK_M, tiles_n = (a.n + BLOCK_N - 1) / BLOCK_N;
    const s32 band = static_cast<s32>(blockIdx.x) / (BAND * tiles_n), in_band = static_cast<s32>(blockIdx.x) % (BAND * tiles_n);
    const s32 height = tiles_m - band * BAND < BAND ? tiles_m - band * BAND : BAND;
    const s32 row0 = (band * BAND + in_band % height) * BLOCK_M, column0 = in_band / height * BLOCK_N;
    const u32 misaligned = static_cast<u32>((reinterpret_cast<u64>(a.x) | static_cast<u64>(a.ld_x)) & 15);
    const s32 steps = (a.k + STEP_K - 1) / STEP_K;
    const s32 first = static_cast<s32>(static_cast<s64>(steps) * blockIdx.z / a.slices);
    const s32 last = static_cast<s32>(static_cast<s64>(steps) * (blockIdx.z + 1) / a.slices);

    s32 sums[TILES][4];
    float totals[TILES][4];
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      reset(sums[tile]);
#pragma unroll
      for (int v = 0; v < 4; ++v) totals[tile][v] = 0.0f;
    }
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
      if (first + s < last) load_stage(shared + s * STAGE_BYTES, a, row0, column0, first + s, misaligned);
      cp_async_commit();
    }
    int filled = STAGES - 1, ready = 0;
#pragma unroll 1
    for (s32 step = first; step < last; ++step) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();
      if (step + STAGES - 1 < last) {
        load_stage(shared + filled * STAGE_BYTES, a, row0, column0, step + STAGES - 1, misaligned);
      }
      cp_async_commit();
      const bool group_ends = (step + 1) % FLUSH_STEPS == 0 || step + 1 == last;
      multiply_step(sums, totals, shared + ready * STAGE_BYTES, warp_m, warp_n, group_ends);
      filled = filled + 1 == STAGES ? 0 : filled + 1;
      ready = ready + 1 == STAGES ? 0 : ready + 1;
    }
    cp_async_wait<0>();
    __syncthreads();

    if constexpr (GROUP > 0) {
      finish_tile(a, e, totals, shared, row0, column0, warp_m, warp_n);
    } else {
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (int v = 0; v < 4; ++v) sums[tile][v] >>= Step::SHIFT;  // exact: every product carries the factor
      }
      finish_tile(a, e, sums, shared, row0, column0, warp_m, warp_n);
    }
  }
};
