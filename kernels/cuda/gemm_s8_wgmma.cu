// gemm_s8_wgmma: the product of gemm_s8.cu for sm_90a, by warpgroups and the copy engine.
//
// Partition, with the default tile in brackets: a block makes BLOCK_M x BLOCK_N outputs (128 x 256) with
// CONSUMERS warpgroups (2), each 64 rows high, and one more warpgroup of which a single thread orders copies.
//
//             BLOCK_N (256)
//          ┌───────────────────┐
//          │ consumer 0        │  64 rows: warp w holds rows 16 w .. 16 w + 15 of them
//          ├───────────────────┤
//          │ consumer 1        │
//          └───────────────────┘
//
// Pipeline: STAGES (4) stages of a BLOCK_M x 128 tile of A and a BLOCK_N x 128 tile of B, each with two barriers. K is
// walked 128 bytes at a time, four instructions of 32.
//
//     producer    wait empty[s] ─ expect bytes at full[s] ─ copy A, copy B ───────────► next stage
//     consumers   wait full[s] ─ 4 x wgmma ─ wait for the previous stage's ─ arrive at its empty ─► next stage
//
// The copy engine lays a row of 128 bytes as 8 chunks of 16, chunk c at place c ^ (row & 7), which is the layout that
// tile.cuh draws and that the descriptors below name (128-byte swizzle, 8 rows every 1024 bytes). It zeroes what lies
// outside the matrices, so no loop has an edge. Both matrices need addresses and row pitches of whole 16 bytes.
//
// The grid is as large as the machine: a block takes tile after tile (blockIdx.x, + gridDim.x, ...), and the producer runs
// ahead into the next tile while the consumers are still writing this one. Sums leave warp by warp, 32 columns at a time,
// through 2.5 KiB of shared memory that belong to the warp alone.

#include "epilogue.cuh"
#include "hopper_machine.cuh"
#include "tile.cuh"

constexpr int BLOCK_K = 128;
constexpr int STEPS = BLOCK_K / 32;
constexpr int ROWS = 64;  // of a consumer
constexpr int CONSUMERS = BLOCK_M / ROWS;
constexpr int WARPGROUP = 128;
constexpr int THREADS = WARPGROUP * (CONSUMERS + 1);
constexpr int A_BYTES = BLOCK_M * BLOCK_K, B_BYTES = BLOCK_N * BLOCK_K, STAGE_BYTES = A_BYTES + B_BYTES;
constexpr int SLICE_COLUMNS = 32;
constexpr int RASTER_GROUP = 8;
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
typedef SliceWriter<OUTPUT, SLICE_COLUMNS, 32> Writer;
constexpr int SLICE_WORDS = 16 * Writer::PITCH;
// stages | slices of the consumers' warps | full barriers | empty barriers
constexpr int SLICES_AT = STAGES * STAGE_BYTES, BARRIERS_AT = SLICES_AT + CONSUMERS * 4 * SLICE_WORDS * 4;
static_assert(BLOCK_M % ROWS == 0 && BLOCK_M <= 256 && (BLOCK_N == 128 || BLOCK_N == 256), "tiles the code has");

typedef s32 Sums[BLOCK_N / 2];
struct alignas(8) Pair { s32 x, y; };

// Which stage comes next, and which round through the ring that is.
struct Turn {
  u32 stage = 0, round = 0;
  DEVICE void next() {
    if (++stage == STAGES) stage = 0, round ^= 1;
  }
};

struct Barriers {
  u32 base;
  DEVICE u32 full(u32 stage) const { return base + 8 * stage; }
  DEVICE u32 empty(u32 stage) const { return base + 8 * (STAGES + stage); }
};

// Names a tile of rows of 128 swizzled bytes: its address, 1024 bytes from eight rows to the next eight, the swizzle.
DEVICE u64 descriptor(u32 tile) {
  return static_cast<u64>(tile >> 4 & 0x3fff) | 1ull << 16 | static_cast<u64>(1024 >> 4) << 32 | 1ull << 62;
}

DEVICE void multiply_step(Sums& sums, u64 a, u64 b, bool accumulate) {
  if constexpr (A_UNSIGNED) wgmma_u8s8(sums, a, b, accumulate);
  else wgmma_s8(sums, a, b, accumulate);
}

DEVICE void produce(const TensorMap& a, const TensorMap& b, u32 stages, Barriers barriers, s32 tiles_m, s32 tiles_n,
                    s32 k_tiles) {
  Turn turn;
  for (s32 tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
    s32 tile_m, tile_n;
    tile_of_block<RASTER_GROUP>(tile, tiles_m, tiles_n, tile_m, tile_n);
#pragma unroll 1
    for (s32 i = 0; i < k_tiles; ++i, turn.next()) {
      mbarrier_wait(barriers.empty(turn.stage), turn.round ^ 1);
      const u32 full = barriers.full(turn.stage), at = stages + turn.stage * STAGE_BYTES;
      mbarrier_arrive_expect(full, STAGE_BYTES);
      tma_load_2d(at, a, i * BLOCK_K, tile_m * BLOCK_M, full);
      tma_load_2d(at + A_BYTES, b, i * BLOCK_K, tile_n * BLOCK_N, full);
    }
  }
}

// Registers cannot be indexed by a loop variable, but which of a few groups of them is stored can be chosen by it.
DEVICE void write_sums(const Sums& sums, const Epilogue& e, s32* slice, s32 row0, s32 column0, s32 m, s32 n) {
  const s32 g = lane_id() / 4, t = lane_id() % 4;
  s32* mine = slice + g * Writer::PITCH + 2 * t;
#pragma unroll 1
  for (s32 part = 0; part < BLOCK_N / SLICE_COLUMNS; ++part) {
    sync_warp();
#pragma unroll
    for (int p = 0; p < BLOCK_N / SLICE_COLUMNS; ++p)
      if (p == part)
#pragma unroll
        for (int j = 0; j < SLICE_COLUMNS / 8; ++j) {
          const s32* c = &sums[(p * SLICE_COLUMNS / 8 + j) * 4];
          *reinterpret_cast<Pair*>(mine + 8 * j) = {c[0], c[1]};
          *reinterpret_cast<Pair*>(mine + 8 * Writer::PITCH + 8 * j) = {c[2], c[3]};
        }
    sync_warp();
    const Writer writer(e, column0 + part * SLICE_COLUMNS, m, n);
    writer.write(slice, 16, [&](s32 r) { return row0 + r; });
  }
}

DEVICE void consume(const Epilogue& e, u32 stages, s32* slice, Barriers barriers, s32 m, s32 n, s32 tiles_m,
                    s32 tiles_n, s32 k_tiles) {
  const s32 consumer = threadIdx.x / WARPGROUP, warp = threadIdx.x % WARPGROUP / 32;
  Turn turn;
  for (s32 tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
    s32 tile_m, tile_n;
    tile_of_block<RASTER_GROUP>(tile, tiles_m, tiles_n, tile_m, tile_n);
    Sums sums;
    u32 previous = 0;
#pragma unroll 1
    for (s32 i = 0; i < k_tiles; ++i, turn.next()) {
      mbarrier_wait(barriers.full(turn.stage), turn.round);
      const u32 at = stages + turn.stage * STAGE_BYTES;
      const u64 a = descriptor(at + consumer * ROWS * BLOCK_K), b = descriptor(at + A_BYTES);
      settle(sums);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < STEPS; ++step)  // 32 bytes along K are 2 units of the address field
        multiply_step(sums, a + 2 * step, b + 2 * step, i > 0 || step > 0);
      wgmma_commit();
      wgmma_wait<1>();
      if (i > 0 && lane_id() == 0) mbarrier_arrive(barriers.empty(previous));
      previous = turn.stage;
    }
    wgmma_wait<0>();
    settle(sums);
    if (k_tiles > 0 && lane_id() == 0) mbarrier_arrive(barriers.empty(previous));
    write_sums(sums, e, slice + (consumer * 4 + warp) * SLICE_WORDS, tile_m * BLOCK_M + consumer * ROWS + 16 * warp,
               tile_n * BLOCK_N, m, n);
  }
}

KERNEL void __launch_bounds__(THREADS, 1)
    gemm_s8_wgmma(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const Epilogue e, s32 m,
                  s32 n, s32 k) {
  DYNAMIC_SHARED(shared);
  const u32 stages = shared_address(shared);
  const Barriers barriers{stages + BARRIERS_AT};
  if (threadIdx.x == 0) {
    prefetch_map(a);
    prefetch_map(b);
    for (u32 stage = 0; stage < STAGES; ++stage) {
      mbarrier_init(barriers.full(stage), 1);
      mbarrier_init(barriers.empty(stage), CONSUMERS * 4);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  const s32 tiles_m = (m + BLOCK_M - 1) / BLOCK_M, tiles_n = (n + BLOCK_N - 1) / BLOCK_N;
  const s32 k_tiles = (k + BLOCK_K - 1) / BLOCK_K;
  if (threadIdx.x >= CONSUMERS * WARPGROUP) {
    give_registers<PRODUCER_REGISTERS>();
    if (threadIdx.x == CONSUMERS * WARPGROUP) produce(a, b, stages, barriers, tiles_m, tiles_n, k_tiles);
  } else {
    take_registers<CONSUMER_REGISTERS>();
    consume(e, stages, reinterpret_cast<s32*>(shared + SLICES_AT), barriers, m, n, tiles_m, tiles_n, k_tiles);
  }
}
