// Matrix product with 4-bit weights: out = epilogue(A W'), A (M, K) 8-bit codes or 4-bit words, W (N, K) 4-bit words.
//
// Macros of a tile configuration: BLOCK_M, BLOCK_N, WARPS_M, WARPS_N, STAGES. Of a layer: SCALE_GROUP (weights per scale,
// 0 for one scale per channel), OUTPUT, SPLIT_K, ALIGN_A (what addresses of 8-bit rows are multiples of: 16, 4 or 1).
//
//                            N →
//                   ┌──────────┬──────────┬─────┐     A block owns BLOCK_M x BLOCK_N of the output and a warp one part of
//        M          │ warp 0   │ warp 1   │ ... │     it. Weights are operand A of the products, so the warp's tiles are 16
//        ↓          ├──────────┼──────────┼─────┤     channels by 8 rows of A. Its weights are unpacked once per step, into
//                   │ warp ... │          │     │     registers, and stay there while all its rows pass by: 12 operations
//                   └──────────┴──────────┴─────┘     per 16 channels and K 64, however many rows.
//
// K is walked in steps of 64 through a ring of STAGES stages that cp.async fills while earlier ones are multiplied; one
// barrier a step, as in gemm_s8.cu:
//
//     stage   ┌ A: BLOCK_M rows of 64 bytes (8 bit, chunks swizzled as in tile.cuh) or of 32 bytes (4 bit)
//             ├ W: BLOCK_N rows of 32 bytes
//             └ ratios: BLOCK_N halves, two rows of them for groups of 32 (SCALE_GROUP > 0 only)
//
// A fragment of rows of 32 bytes is one 8-byte load per lane and row, eight rows one behind the other: free of conflicts
// without swizzle. Rows of 64 bytes take one 16-byte load, whose registers are operand B of both products as they are.
//
// Scales by group: when a group ends, its integer sums become floats and are added to float totals times the group's
// ratio. The conversion costs one addition: sums start at MAGIC, the bits of 1.5 * 2^23, to which an integer up to 2^22 =
// 16384 * 256 may be added as to a number. So groups above 256 are added in parts.
//
// Nothing needs to divide anything: what lies outside M, N or K is zero in shared memory and never written. Split-K
// serves small M; its slices also lift the bound on K, since each slice drops the factor of its codes before the sum.
#pragma once

#include "epilogue.cuh"
#include "int4.cuh"
#include "split_k.cuh"
#include "tile.cuh"

struct Int4Weights {
  const u8* words;         // (N, padded K / 2 bytes)
  const u16* ratios;       // (groups, ld_ratios) halves; SCALE_GROUP > 0 only
  const s32* zero_points;  // (N), of code - 8, or null; SCALE_GROUP == 0 only
  const s32* row_sums;     // (M) sums of A over K, beside zero_points
  s32 ld_ratios;           // a multiple of 8
};

constexpr s32 MAGIC = 0x4B400000;
constexpr float MAGIC_VALUE = 12582912.0f;
constexpr int MAGIC_K = 256;
constexpr int STEP_K = 64;
constexpr int W_BYTES = STEP_K / 2;
constexpr int RASTER_GROUP = 8;
constexpr int THREADS = 32 * WARPS_M * WARPS_N;

constexpr int WARP_M = BLOCK_M / WARPS_M, WARP_N = BLOCK_N / WARPS_N;
constexpr int TILES_M = WARP_M / 8, TILES_N = WARP_N / 16, TILES = TILES_M * TILES_N;  // tile i * TILES_N + j
static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "warps own whole tiles, and pairs of them along M");

constexpr int RATIO_ROWS = SCALE_GROUP == 0 ? 0 : SCALE_GROUP == 32 ? 2 : 1, RATIO_CHUNKS = BLOCK_N * 2 / CHUNK;
constexpr int STEPS_TO_FLUSH = SCALE_GROUP <= STEP_K ? 1 : (SCALE_GROUP < MAGIC_K ? SCALE_GROUP : MAGIC_K) / STEP_K;
constexpr WordOrder ORDER = SCALE_GROUP == 32 ? HALVES : ADJACENT;
static_assert(SCALE_GROUP % STEP_K == 0 || SCALE_GROUP == 32, "a step holds whole groups, or a group whole steps");
static_assert(SCALE_GROUP <= MAGIC_K || SCALE_GROUP % MAGIC_K == 0, "a group is added in equal parts");
static_assert(RATIO_ROWS * RATIO_CHUNKS <= THREADS, "a thread copies one chunk of ratios");

typedef SliceWriter<OUTPUT, BLOCK_N, THREADS> Writer;

template <class Policy>
struct Int4Gemm {
  typedef WeightsFirst<Policy> Step;
  static constexpr bool BYTES = Step::X_BYTES == STEP_K;
  static constexpr int W_AT = BLOCK_M * Step::X_BYTES, RATIO_AT = W_AT + BLOCK_N * W_BYTES;
  static constexpr int STAGE_BYTES = RATIO_AT + RATIO_ROWS * RATIO_CHUNKS * CHUNK;
  static_assert(16 * WARPS_M * Writer::PITCH * 4 <= STAGES * STAGE_BYTES, "a slice fits into the pipeline");
  static_assert(SCALE_GROUP != 32 || Step::SHIFT > 0, "the native instruction covers 64 k at once");
  typedef TileLoader<BLOCK_M, Step::X_BYTES, THREADS, BYTES ? ALIGN_A : CHUNK> LoadA;
  typedef TileLoader<BLOCK_N, W_BYTES, THREADS, CHUNK> LoadW;

  s32 row0, column0;  // of the block
  u32 warp_m, warp_n;

  DEVICE void load_ratios(u8* stage, const Int4Weights& w, s32 step, s32 k) const {
    const u32 r = threadIdx.x / RATIO_CHUNKS, c = threadIdx.x % RATIO_CHUNKS;
    if (r >= RATIO_ROWS) return;
    const s32 group = (step * STEP_K + static_cast<s32>(r) * SCALE_GROUP) / SCALE_GROUP;
    const s32 column = column0 + static_cast<s32>(c) * 8;
    const bool inside = group * SCALE_GROUP < k && column < w.ld_ratios;
    cp_async_16(shared_address(stage + RATIO_AT + threadIdx.x * CHUNK),
                w.ratios + (inside ? static_cast<s64>(group) * w.ld_ratios + column : 0), inside ? CHUNK : 0);
  }

  static DEVICE void reset(s32 (&sum)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = SCALE_GROUP > 0 ? MAGIC : 0;
  }

  // Adds one tile, times the ratios of its two channels, to the totals and starts it again.
  static DEVICE void flush(s32 (&sum)[4], float (&total)[4], const u16* ratios) {
    const float top = half_to_float(ratios[0]), low = half_to_float(ratios[8]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float value = add(bits_to_float(static_cast<u32>(sum[i])), -MAGIC_VALUE);
      total[i] = fused_multiply_add(value, i < 2 ? top : low, total[i]);
    }
    reset(sum);
  }

  DEVICE void multiply_step(s32 (&sums)[TILES][4], float (&totals)[TILES][4], const u8* stage, bool group_ends) const {
    const u32 g = lane_id() / 4, t = lane_id() % 4, channel = warp_n * WARP_N;
    const u16* ratios = reinterpret_cast<const u16*>(stage + RATIO_AT) + channel + g;
    typename Step::W w[TILES_N];
#pragma unroll
    for (int j = 0; j < TILES_N; ++j)
      Step::template load_w<ORDER>(w[j], stage + W_AT + (channel + 16 * j) * W_BYTES, g, t);
#pragma unroll
    for (int i = 0; i < TILES_M; ++i) {
      typename Step::X x;
      Step::template load_x<ORDER>(x, stage + (warp_m * WARP_M + 8 * i) * Step::X_BYTES, g, t);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int j = 0; j < TILES_N; ++j) {
          const int tile = i * TILES_N + j;
          Step::multiply(sums[tile], w[j], x, half);
          if constexpr (SCALE_GROUP == 32) flush(sums[tile], totals[tile], ratios + half * BLOCK_N + 16 * j);
        }
    }
    if constexpr (SCALE_GROUP > 32) {
      if (!group_ends) return;
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) flush(sums[tile], totals[tile], ratios + 16 * (tile % TILES_N));
    }
  }

  // 16 rows of every warp at a time go through shared memory to the epilogue (epilogue.cuh), which also turns the tiles'
  // columns into rows. The loop stays a loop, and the next tiles are moved to where the first were, because registers
  // cannot be indexed.
  template <class Value>
  DEVICE void write(Value (&values)[TILES][4], const Int4Weights& w, const Epilogue& e, s32 m, s32 n, Value* partial,
                    u32* arrivals, u8* free) const {
    if constexpr (SPLIT_K) {
      if (!gather_slices<TILES, THREADS>(values, partial, arrivals, blockIdx.x, blockIdx.z, gridDim.z,
                                         reinterpret_cast<u32*>(free))) return;
    }
    const Writer writer(e, column0, m, n);
    Value* slice = reinterpret_cast<Value*>(free);
#pragma unroll 1
    for (int i = 0; i < WARP_M; i += 16) {
      const auto row_of = [&](s32 r) { return row0 + r / 16 * WARP_M + i + r % 16; };
#pragma unroll
      for (int tile = 0; tile < 2 * TILES_N; ++tile)
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          const s32 r = warp_m * 16 + tile / TILES_N * 8 + 2 * (lane_id() % 4) + x % 2;
          const s32 c = warp_n * WARP_N + tile % TILES_N * 16 + lane_id() / 4 + x / 2 * 8;
          Value value = values[tile][x];
          if constexpr (SCALE_GROUP == 0) {
            if (w.zero_points && row_of(r) < m && column0 + c < n) {
              value -= w.zero_points[column0 + c] * w.row_sums[row_of(r)];
            }
          }
          slice[r * Writer::PITCH + c] = value;
        }
      __syncthreads();
      writer.write(slice, 16 * WARPS_M, row_of);
      __syncthreads();
#pragma unroll
      for (int tile = 2 * TILES_N; tile < TILES; ++tile)
#pragma unroll
        for (int x = 0; x < 4; ++x) values[tile - 2 * TILES_N][x] = values[tile][x];
    }
  }

  static DEVICE void run(const u8* a, s32 lda, const Int4Weights& weights, const Epilogue& e, s32 m, s32 n, s32 k,
                         void* partial, u32* arrivals, u8* shared) {
    Int4Gemm block;
    s32 tile_m, tile_n;
    tile_of_block<RASTER_GROUP>(blockIdx.x, (m + BLOCK_M - 1) / BLOCK_M, (n + BLOCK_N - 1) / BLOCK_N, tile_m, tile_n);
    block.row0 = tile_m * BLOCK_M, block.column0 = tile_n * BLOCK_N;
    block.warp_m = threadIdx.x / 32 / WARPS_N, block.warp_n = threadIdx.x / 32 % WARPS_N;

    const s32 steps = (k + STEP_K - 1) / STEP_K;
    s32 first = 0, last = steps;
    if constexpr (SPLIT_K) {
      first = static_cast<s32>(static_cast<s64>(steps) * blockIdx.z / gridDim.z);
      last = static_cast<s32>(static_cast<s64>(steps) * (blockIdx.z + 1) / gridDim.z);
    }
    const s32 row_bytes = BYTES ? k : steps * W_BYTES;
    LoadA load_a(a, lda, block.row0, m, first * Step::X_BYTES, row_bytes);
    LoadW load_w(weights.words, steps * W_BYTES, block.column0, n, first * W_BYTES, steps * W_BYTES);
    const auto fill = [&](u8* stage, s32 step) {
      load_a.next(shared_address(stage));
      load_w.next(shared_address(stage + W_AT));
      if constexpr (SCALE_GROUP > 0) block.load_ratios(stage, weights, step, k);
    };

    s32 sums[TILES][4];
    float totals[TILES][4] = {};
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) reset(sums[tile]);
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
      if (first + s < last) fill(shared + s * STAGE_BYTES, first + s);
      cp_async_commit();  // also when empty: the waits below count groups
    }
    s32 read = 0, write = STAGES - 1;
#pragma unroll 1
    for (s32 step = first; step < last; ++step) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();
      if (step + STAGES - 1 < last) fill(shared + write * STAGE_BYTES, step + STAGES - 1);
      cp_async_commit();
      const bool group_ends = (step + 1) % STEPS_TO_FLUSH == 0 || step + 1 == last;
      block.multiply_step(sums, totals, shared + read * STAGE_BYTES, group_ends);
      read = read + 1 == STAGES ? 0 : read + 1;
      write = write + 1 == STAGES ? 0 : write + 1;
    }
    cp_async_wait<0>();
    __syncthreads();  // the stages may be reused from here on
    if constexpr (SCALE_GROUP > 0) {
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) totals[tile][i] = multiply(totals[tile][i], 1.0f / (1 << Step::SHIFT));
      block.write(totals, weights, e, m, n, static_cast<float*>(partial), arrivals, shared);
    } else {
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[tile][i] >>= Step::SHIFT;  // exact: every product has the factor
      block.write(sums, weights, e, m, n, static_cast<s32*>(partial), arrivals, shared);
    }
  }
};
