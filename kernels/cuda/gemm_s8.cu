// gemm_s8: out = epilogue(A B'), 8-bit codes times 8-bit codes into exact 32-bit sums.
//
// A is (M, K) row-major, s8 or (A_UNSIGNED=1) u8; B is (N, K) row-major s8, that is, the weight of output channel n is a
// row. M, N and K are arbitrary; `lda` and `ldb` are bytes from row to row. ALIGN_A and ALIGN_B say what the rows'
// addresses are multiples of (16, 4 or 1). An activation zero point z is folded into the bias by the caller:
// bias[n] - z * sum_k B[n][k].
//
// Partition, with the default tile in brackets:
//
//                       N →
//                ┌──────┬──────┬──────┐            one block: WARPS_M x WARPS_N warps (2 x 2)
//                │      │block │      │              ┌───────────┬───────────┐
//        M       ├──────┼──────┼──────┤              │ warp 0    │ warp 1    │  BLOCK_M (128)
//        ↓       │      │      │      │              │ 64 x 64   │ 64 x 64   │
//                └──────┴──────┴──────┘              ├───────────┼───────────┤
//     blocks are numbered in groups of eight         │ warp 2    │ warp 3    │
//     rows of tiles, see tile.cuh                    └───────────┴───────────┘
//                                                       BLOCK_N (128)
//     one warp: 16 x 8 tiles of mma.m16n8k32, 4 x 8 of them = 128 accumulators a thread
//
// Pipeline along K, BLOCK_K (64) bytes a stage, STAGES (3) stages of A and B tiles in shared memory:
//
//     copies  │ 0 │ 1 │ 2 │ 3 │ 4 │            while tile i is multiplied, tiles i+1 .. i+STAGES-1 are on their way;
//     products        │ 0 │ 1 │ 2 │            one barrier per tile: it says both that tile i has landed for everyone
//                                              and that the stage of tile i-1 may be overwritten
//
// Small M leaves most of the machine idle, so with SPLIT_K=1 gridDim.z blocks share the K tiles of one output tile, see
// split_k.cuh; the one that arrives last adds all sums and runs the epilogue.

#include "epilogue.cuh"
#include "split_k.cuh"
#include "tile.cuh"

constexpr int WARPS = WARPS_M * WARPS_N;
constexpr int THREADS = 32 * WARPS;
constexpr int WARP_M = BLOCK_M / WARPS_M;
constexpr int WARP_N = BLOCK_N / WARPS_N;
constexpr int TILES_M = WARP_M / 16;
constexpr int TILES_N = WARP_N / 8;
constexpr int STEPS = BLOCK_K / 32;
constexpr int A_BYTES = BLOCK_M * BLOCK_K;
constexpr int B_BYTES = BLOCK_N * BLOCK_K;
constexpr int RASTER_GROUP = 8;
static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "warps hold whole fragments");

struct alignas(8) Pair { s32 x, y; };
typedef s32 Sums[TILES_M * TILES_N][4];

DEVICE void multiply_tile(Sums& sums, u32 a_tile, u32 b_tile, u32 warp_m, u32 warp_n) {
#pragma unroll
  for (int step = 0; step < STEPS; ++step) {
    u32 a[TILES_M][4], b[TILES_N][2];
#pragma unroll
    for (int i = 0; i < TILES_M; ++i) load_a<BLOCK_K>(a[i], a_tile, warp_m * WARP_M + 16 * i, step);
#pragma unroll
    for (int j = 0; j < TILES_N; j += 2) {
      u32 pair[4];
      load_b_pair<BLOCK_K>(pair, b_tile, warp_n * WARP_N + 8 * j, step);
      b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
    }
#pragma unroll
    for (int i = 0; i < TILES_M; ++i)
#pragma unroll
      for (int j = 0; j < TILES_N; ++j) {
        if constexpr (A_UNSIGNED) mma_m16n8k32_u8s8(sums[i * TILES_N + j], a[i], b[j]);
        else mma_m16n8k32_s8(sums[i * TILES_N + j], a[i], b[j]);
      }
  }
}

// One row of 16 x 8 tiles of every warp at a time goes through shared memory to the epilogue. The loop stays a loop, and
// the next row is moved to where the first one was: registers cannot be indexed, and choosing among them by a condition
// made the compiler put all of them into local memory.
DEVICE void write_sums(Sums& sums, const Epilogue& e, u8* shared, s32 row0, s32 column0, s32 m, s32 n) {
  typedef SliceWriter<OUTPUT, BLOCK_N, THREADS> Writer;
  static_assert(16 * WARPS_M * Writer::PITCH * 4 <= STAGES * (A_BYTES + B_BYTES), "a slice fits into the pipeline");
  const Writer writer(e, column0, m, n);
  s32* slice = reinterpret_cast<s32*>(shared);
  const s32 warp = threadIdx.x / 32, g = lane_id() / 4, t = lane_id() % 4;
  s32* mine = slice + (warp / WARPS_N * 16 + g) * Writer::PITCH + warp % WARPS_N * WARP_N + 2 * t;
#pragma unroll 1
  for (s32 i = 0; i < TILES_M; ++i) {
#pragma unroll
    for (int j = 0; j < TILES_N; ++j) {
      *reinterpret_cast<Pair*>(mine + 8 * j) = {sums[j][0], sums[j][1]};
      *reinterpret_cast<Pair*>(mine + 8 * Writer::PITCH + 8 * j) = {sums[j][2], sums[j][3]};
    }
    __syncthreads();
    writer.write(slice, 16 * WARPS_M, [&](s32 r) { return row0 + r / 16 * WARP_M + 16 * i + r % 16; });
    __syncthreads();
#pragma unroll
    for (int tile = TILES_N; tile < TILES_M * TILES_N; ++tile)
#pragma unroll
      for (int x = 0; x < 4; ++x) sums[tile - TILES_N][x] = sums[tile][x];
  }
}

KERNEL void __launch_bounds__(THREADS) gemm_s8(const u8* a, const u8* b, const Epilogue e, s32 m, s32 n, s32 k, s32 lda,
                                               s32 ldb, s32* partial, u32* arrivals) {
  DYNAMIC_SHARED(shared);
  const s32 tiles_m = (m + BLOCK_M - 1) / BLOCK_M, tiles_n = (n + BLOCK_N - 1) / BLOCK_N;
  s32 tile_m, tile_n;
  tile_of_block<RASTER_GROUP>(blockIdx.x, tiles_m, tiles_n, tile_m, tile_n);
  const s32 row0 = tile_m * BLOCK_M, column0 = tile_n * BLOCK_N;

  const s32 all_k_tiles = (k + BLOCK_K - 1) / BLOCK_K;
  s32 first = 0, k_tiles = all_k_tiles;
  if constexpr (SPLIT_K) {
    const s32 share = (all_k_tiles + gridDim.z - 1) / gridDim.z;
    first = min(static_cast<s32>(blockIdx.z) * share, all_k_tiles);
    k_tiles = min(share, all_k_tiles - first);
  }
  TileLoader<BLOCK_M, BLOCK_K, THREADS, ALIGN_A> load_rows(a, lda, row0, m, first * BLOCK_K, k);
  TileLoader<BLOCK_N, BLOCK_K, THREADS, ALIGN_B> load_columns(b, ldb, column0, n, first * BLOCK_K, k);
  const u32 base = shared_address(shared);
  const auto fill = [&](s32 stage) {
    load_rows.next(base + stage * (A_BYTES + B_BYTES));
    load_columns.next(base + stage * (A_BYTES + B_BYTES) + A_BYTES);
  };

  Sums sums = {};
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    if (stage < k_tiles) fill(stage);
    cp_async_commit();  // also when empty: the waits below count groups
  }
  const u32 warp_m = threadIdx.x / 32 / WARPS_N, warp_n = threadIdx.x / 32 % WARPS_N;
  s32 read = 0, write = STAGES - 1;
#pragma unroll 1
  for (s32 tile = 0; tile < k_tiles; ++tile) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (tile + STAGES - 1 < k_tiles) fill(write);
    cp_async_commit();
    const u32 a_tile = base + read * (A_BYTES + B_BYTES);
    multiply_tile(sums, a_tile, a_tile + A_BYTES, warp_m, warp_n);
    read = read + 1 == STAGES ? 0 : read + 1;
    write = write + 1 == STAGES ? 0 : write + 1;
  }
  cp_async_wait<0>();
  __syncthreads();  // the stages may be reused from here on
  if constexpr (SPLIT_K) {
    if (!gather_slices<TILES_M * TILES_N, THREADS>(sums, partial, arrivals, blockIdx.x, blockIdx.z, gridDim.z,
                                                    reinterpret_cast<u32*>(shared))) return;
  }
  write_sums(sums, e, shared, row0, column0, m, n);
}
