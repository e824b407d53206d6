// gemm_w4a16: 4-bit weights times 16-bit activations, for few rows of activations: what costs is reading the weights.
//
// out[token][channel] = scale[channel] * sum over groups of ratio[channel][group] * sum of (code - zero point) * x, then
// the epilogue. Activations are halves, or bfloat16 with BF16=1 (not on sm_75). Weights come from
// `kernels.cuda.packing.pack_fragments`.
//
// Macros: TOKENS (rows of a block, 8 or a multiple of 16), STRIPS (of 16 channels, per warp), WARPS_N, WARPS_K, STAGES;
// SCALE_GROUP (0: one scale per channel), ZERO_POINTS, BF16, OUTPUT, SPLIT_K, ALIGN_A (of the rows of x, in bytes).
//
// Weights are the A operand of mma.m16n8k16, 16 channels by 16 k, and tokens are its 8 columns: one token wastes 7 of 8
// columns and not 15 of 16 rows. Four tiles of A, K 64, are one 16-byte load per lane, because the packing put a lane's
// registers next to each other:
//
//     word = 8 codes:  bits  0..3   4..7   8..11  12..15   (+16: the second value of each register)
//                            a[0]   a[1]   a[2]   a[3]      rows g, g+8, g, g+8; k 2t.., 2t.., 2t+8.., 2t+8..
//
// A mask and an exponent make two halves of two codes at once: (w & 0x000F000F) | 0x64006400 is 1024 + code, and
// (w & 0x00F000F0) | 0x64006400 is 1024 + 16 * code. A subtraction, or a multiplication by 1/16 with one, leaves the code
// less its zero point, exactly. bfloat16 has 7 bits: 0x43004300 is 128 + code, after a shift per register.
//
// One block:
//
//      channels, 16 * STRIPS * WARPS_N              k of one step, 64 * WARPS_K
//     ┌────────────┬────────────┐                  ┌─────────┬─────────┬───────┐
//     │ warps n=0  │ warps n=1  │ TOKENS           │ warps   │ warps   │  ...  │   every warp multiplies its own 64 of K
//     └────────────┴────────────┘                  │ k = 0   │ k = 1   │       │   for all its strips and all tokens
//                                                  └─────────┴─────────┴───────┘
//
// Two rings filled by cp.async, STAGES deep. Weights and ratios: each thread copies exactly what it will read itself, so
// its slots need no barrier, only a wait; shared memory serves as a deep file of registers. Activations: one swizzled
// tile of TOKENS x 128 * WARPS_K bytes for all warps (tile.cuh), read by ldmatrix; its barrier is the one of each step.
//
// Sums of a group have float accumulators of their own and are added times the ratio when the group ends: weights are
// never rounded to halves after scaling. At the end the warps along K add up in shared memory one after another, and
// blocks of split-K through `partial`; both in a fixed order.

#include "epilogue.cuh"
#include "split_k.cuh"
#include "tile.cuh"

constexpr int WARPS = WARPS_N * WARPS_K, THREADS = 32 * WARPS;
constexpr int CHANNELS = 16 * STRIPS * WARPS_N;
constexpr int TOKEN_TILES = TOKENS / 8;
constexpr int BLOCK_K = 64;                     // of one warp and step
constexpr int X_BYTES = 2 * BLOCK_K * WARPS_K;  // of a row of activations in one step
constexpr int RATIOS = SCALE_GROUP == 0 ? 0 : SCALE_GROUP < BLOCK_K ? BLOCK_K / SCALE_GROUP : 1;
constexpr int PAIRS = RATIOS * (1 + ZERO_POINTS) + (SCALE_GROUP == 0 && ZERO_POINTS);  // words beside a tile's codes
constexpr s32 GROUP_K = SCALE_GROUP == 0 ? 1 << 30 : SCALE_GROUP;
constexpr int PAIRS_PER_BLOCK = RATIOS == 0 ? 1 : RATIOS;
constexpr int RASTER_GROUP = 8;
static_assert(TOKENS % 8 == 0, "tokens come in columns of eight");
static_assert(SCALE_GROUP == 0 || BLOCK_K % SCALE_GROUP == 0 || SCALE_GROUP % BLOCK_K == 0, "groups and blocks nest");
static_assert(SCALE_GROUP == 0 || SCALE_GROUP % 16 == 0, "a group is whole instructions");

constexpr int W_AT = TOKENS * X_BYTES;
constexpr int PAIRS_AT = W_AT + WARPS * STRIPS * 512;
constexpr int STAGE_BYTES = PAIRS_AT + WARPS * STRIPS * PAIRS * 128;
typedef SliceWriter<OUTPUT, CHANNELS, THREADS> Writer;

struct Fragments {
  const u8* words;         // (strips, blocks, 32 lanes, 16 bytes)
  const u16* ratios;       // (strips, groups, 8, 2) halves, SCALE_GROUP > 0 only
  const u16* zero_points;  // the same shape (one group if SCALE_GROUP == 0), ZERO_POINTS only
};

typedef float Sums[STRIPS][TOKEN_TILES][4];

DEVICE void zero(Sums& sums) {
#pragma unroll
  for (int s = 0; s < STRIPS; ++s)
#pragma unroll
    for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[s][j][i] = 0.0f;
}

// What is subtracted from the unpacked codes of rows g (registers 0 and 2) and g + 8 (1 and 3).
struct Offsets {
  u32 even, odd;
};

DEVICE Offsets offsets_of(u32 pair) {
  const u32 low = pair & 0xF, high = pair >> 16;
#if BF16
  return {0xC300C300u | low * 0x00010001u, 0xC300C300u | high * 0x00010001u};  // -(128 + zero point)
#else
  return {0x64006400u | low * 0x00010001u, 0xD400D400u | high * 0x00100010u};  // 1024 + zero point, -(64 + zero point)
#endif
}

constexpr u32 EIGHTS = 0x00080008u;
constexpr u32 MASK_AND_OR = 0xEA;  // bitwise3: (a & b) | c

DEVICE void unpack(u32 (&a)[4], u32 word, const Offsets& offsets) {
#if BF16
  constexpr u32 ONES = 0x3F803F80u;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const u32 raw = bitwise3<MASK_AND_OR>(word >> (4 * r), 0x000F000Fu, 0x43004300u);
    a[r] = bfloat162_fused_multiply_add(raw, ONES, r % 2 ? offsets.odd : offsets.even);
  }
#else
  constexpr u32 SIXTEENTHS = 0x2C002C00u;
#pragma unroll
  for (int r = 0; r < 4; r += 2) {
    const u32 two = word >> (4 * r);
    a[r] = half2_subtract(bitwise3<MASK_AND_OR>(two, 0x000F000Fu, 0x64006400u), offsets.even);
    a[r + 1] = half2_fused_multiply_add(bitwise3<MASK_AND_OR>(two, 0x00F000F0u, 0x64006400u), SIXTEENTHS, offsets.odd);
  }
#endif
}

DEVICE void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if BF16
  mma_m16n8k16_bf16(c, a, b);
#else
  mma_m16n8k16_f16(c, a, b);
#endif
}

// Where a warp's own slots of a stage begin.
struct Slots {
  u8* words;
  u8* pairs;
  DEVICE Slots(u8* stage) {
    const u32 warp = threadIdx.x / 32, lane = lane_id();
    words = stage + W_AT + warp * STRIPS * 512 + lane * 16;
    pairs = stage + PAIRS_AT + warp * STRIPS * PAIRS * 128 + lane * 4;
  }
  DEVICE u8* word(int strip) const { return words + strip * 512; }
  DEVICE u8* pair(int strip, int i) const { return pairs + (strip * PAIRS + i) * 128; }
  DEVICE u32 read_pair(int strip, int i) const { return *reinterpret_cast<const u32*>(pair(strip, i)); }
};

// A thread's share of a warp's weights on their way to its slots, block by block of K. What lies outside is not read.
struct Stream {
  const u8* words;    // of the first strip, at the next block
  s64 strip_bytes;    // from strip to strip
  const u8* ratios;   // of the first strip and this lane's rows
  const u8* zero_points;
  s64 strip_pairs;    // bytes from strip to strip of ratios and zero points
  s32 strips;         // of the matrix, from the first on
  s32 block, last;

  DEVICE Stream(const Fragments& w, s32 strip0, s32 strips_of_matrix, s32 blocks, s32 groups, s32 first, s32 last)
      : strips(strips_of_matrix - strip0), block(first), last(last) {
    strip_bytes = static_cast<s64>(blocks) * 512;
    strip_pairs = static_cast<s64>(groups) * 32;
    words = w.words + strip0 * strip_bytes + static_cast<s64>(block) * 512 + lane_id() * 16;
    const s64 pairs = strip0 * strip_pairs + lane_id() / 4 * 4;
    ratios = reinterpret_cast<const u8*>(w.ratios) + pairs;
    zero_points = reinterpret_cast<const u8*>(w.zero_points) + pairs;
  }

  DEVICE void copy(u8* stage) {
    const Slots slots(stage);
    const s32 exist = block < last ? strips : 0;
#pragma unroll
    for (int s = 0; s < STRIPS; ++s) {
      const bool inside = s < exist;
      cp_async_16(shared_address(slots.word(s)), words + s * strip_bytes, inside ? 16 : 0);
#pragma unroll
      for (int i = 0; i < PAIRS; ++i) {
        const u8* pairs = i < RATIOS ? ratios : zero_points;
        const s32 group = (block * BLOCK_K + i % PAIRS_PER_BLOCK * SCALE_GROUP) / GROUP_K;
        cp_async_4(shared_address(slots.pair(s, i)), pairs + s * strip_pairs + group * 32, inside ? 4 : 0);
      }
    }
    words += WARPS_K * 512;
    block += WARPS_K;
  }
};

// The B operands of one k16: chunks 2 * step and 2 * step + 1 of the warp's 128 bytes of every token. Two tiles a time.
DEVICE void load_tokens(u32 (&b)[TOKEN_TILES][2], u32 x_tile, u32 warp_k, int step, u32 lane) {
  const u32 chunk = warp_k * 8 + 2 * step + lane / 8 % 2;
  if constexpr (TOKEN_TILES == 1) {
    ldmatrix_x2(b[0], x_tile + chunk_place<X_BYTES>(lane % 8, chunk));
  } else {
#pragma unroll
    for (int j = 0; j < TOKEN_TILES; j += 2) {
      u32 two[4];
      ldmatrix_x4(two, x_tile + chunk_place<X_BYTES>(8 * j + lane / 16 * 8 + lane % 8, chunk));
      b[j][0] = two[0], b[j][1] = two[1], b[j + 1][0] = two[2], b[j + 1][1] = two[3];
    }
  }
}

DEVICE void flush(Sums& totals, Sums& sums, const Slots& slots, int ratio) {
#pragma unroll
  for (int s = 0; s < STRIPS; ++s) {
    const u32 pair = slots.read_pair(s, ratio);
    const float top = half_to_float(static_cast<u16>(pair)), low = half_to_float(static_cast<u16>(pair >> 16));
#pragma unroll
    for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        totals[s][j][i] = fused_multiply_add(sums[s][j][i], i < 2 ? top : low, totals[s][j][i]);
  }
  zero(sums);
}

DEVICE void multiply_block(Sums& totals, Sums& sums, u8* stage, u32 warp_k, bool group_ends) {
  const Slots slots(stage);
  const u32 lane = lane_id(), x_tile = shared_address(stage);
  u32 words[STRIPS][4];
  Offsets offsets[STRIPS];
#pragma unroll
  for (int s = 0; s < STRIPS; ++s) {
    const Vector16 v = *reinterpret_cast<const Vector16*>(slots.word(s));
    words[s][0] = v.x, words[s][1] = v.y, words[s][2] = v.z, words[s][3] = v.w;
    offsets[s] = offsets_of(EIGHTS);
  }
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    u32 b[TOKEN_TILES][2];
    load_tokens(b, x_tile, warp_k, step, lane);
#pragma unroll
    for (int s = 0; s < STRIPS; ++s) {
      if constexpr (ZERO_POINTS) {
        constexpr int STEPS = RATIOS <= 1 ? 4 : SCALE_GROUP / 16;
        if (step % STEPS == 0) offsets[s] = offsets_of(slots.read_pair(s, RATIOS + step / STEPS));
      }
      u32 a[4];
      unpack(a, words[s][step], offsets[s]);
#pragma unroll
      for (int j = 0; j < TOKEN_TILES; ++j) multiply(sums[s][j], a, b[j]);
    }
    if constexpr (RATIOS > 1) {
      if ((step + 1) * 16 % SCALE_GROUP == 0) flush(totals, sums, slots, step * 16 / SCALE_GROUP);
    }
  }
  if constexpr (RATIOS == 1) {
    if (group_ends) flush(totals, sums, slots, 0);
  }
}
static_assert(TOKEN_TILES == 1 || TOKEN_TILES % 2 == 0, "ldmatrix loads two tiles of tokens");

// The warps along K add their sums to one slice of TOKENS rows and CHANNELS columns, one after another.
DEVICE void add_up(float* slice, const Sums& sums, u32 warp_n, u32 warp_k) {
  const u32 g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll 1
  for (u32 turn = 0; turn < WARPS_K; ++turn) {
    if (turn == warp_k) {
#pragma unroll
      for (int s = 0; s < STRIPS; ++s)
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float* at = slice + (8 * j + 2 * t + i % 2) * Writer::PITCH + (warp_n * STRIPS + s) * 16 + g + i / 2 * 8;
            *at = turn == 0 ? sums[s][j][i] : add(*at, sums[s][j][i]);
          }
    }
    __syncthreads();
  }
}

KERNEL void __launch_bounds__(THREADS) gemm_w4a16(const u8* x, const Fragments weights, const Epilogue e, s32 m, s32 n,
                                                  s32 k, s32 ld_x, float* partial, u32* arrivals) {
  DYNAMIC_SHARED(shared);
  s32 tile_m, tile_n;
  tile_of_block<RASTER_GROUP>(blockIdx.x, (m + TOKENS - 1) / TOKENS, (n + CHANNELS - 1) / CHANNELS, tile_m, tile_n);
  const s32 token0 = tile_m * TOKENS, channel0 = tile_n * CHANNELS;
  const u32 warp_n = threadIdx.x / 32 % WARPS_N, warp_k = threadIdx.x / 32 / WARPS_N;
  const s32 blocks = (k + BLOCK_K - 1) / BLOCK_K;
  const s32 groups = (blocks * BLOCK_K + GROUP_K - 1) / GROUP_K;
  s32 first = 0, last = blocks;
  if constexpr (SPLIT_K) {
    first = static_cast<s32>(static_cast<s64>(blocks) * blockIdx.z / gridDim.z);
    last = static_cast<s32>(static_cast<s64>(blocks) * (blockIdx.z + 1) / gridDim.z);
  }
  const s32 steps = (last - first + WARPS_K - 1) / WARPS_K;
  TileLoader<TOKENS, X_BYTES, THREADS, ALIGN_A> load_x(x, ld_x, token0, m, first * 2 * BLOCK_K, 2 * k);
  s32 block = first + static_cast<s32>(warp_k);
  Stream stream(weights, channel0 / 16 + static_cast<s32>(warp_n) * STRIPS, (n + 15) / 16, blocks, groups, block, last);
  const auto fill = [&](u8* stage) {
    load_x.next(shared_address(stage));
    stream.copy(stage);
  };

  Sums totals, sums;
  zero(totals);
  zero(sums);
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < steps) fill(shared + s * STAGE_BYTES);
    cp_async_commit();  // also when empty: the waits below count groups
  }
  s32 read = 0, write = STAGES - 1;
#pragma unroll 1
  for (s32 step = 0; step < steps; ++step) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) fill(shared + write * STAGE_BYTES);
    cp_async_commit();
    // A warp that shares K with others meets another group in its next block.
    const bool group_ends = WARPS_K > 1 || (block + 1) * BLOCK_K % GROUP_K == 0 || block + 1 == last;
    if (block < last) multiply_block(totals, sums, shared + read * STAGE_BYTES, warp_k, group_ends);
    block += WARPS_K;
    read = read + 1 == STAGES ? 0 : read + 1;
    write = write + 1 == STAGES ? 0 : write + 1;
  }
  cp_async_wait<0>();
  __syncthreads();  // the stages may be reused from here on

  float* slice = reinterpret_cast<float*>(shared);
  add_up(slice, SCALE_GROUP == 0 ? sums : totals, warp_n, warp_k);
  if constexpr (SPLIT_K) {
    u32* flag = reinterpret_cast<u32*>(slice + TOKENS * Writer::PITCH);
    if (!gather_shared_slices<TOKENS, CHANNELS, Writer::PITCH, THREADS>(slice, partial, arrivals, blockIdx.x,
                                                                        blockIdx.z, gridDim.z, flag)) return;
  }
  Writer(e, channel0, m, n).write(slice, TOKENS, [&](s32 r) { return token0 + r; });
}
static_assert(TOKENS * Writer::PITCH * 4 + 4 <= STAGES * STAGE_BYTES, "the output fits into the pipeline");
