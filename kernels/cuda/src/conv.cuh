// Convolution as a matrix product that is never written out (implicit GEMM), for 8-bit and 4-bit codes, then the
// epilogue. One group of channels is one product; `gridDim.y` counts the groups.
//
//   out[m][o] = sum over k of image[m][k] * w[o][k]     m = output pixel (n, p, q)     k = (r, s, c), c fastest
//
//   image row m = the R x S patch under output pixel m      r ┌────┬────┬────┐   every square is one pixel's
//   the bytes of one pixel's group are neighbours (NHWC),     │ c… │ c… │ c… │   channels, padded with zeroes to a
//   so a row of the image is R·S runs in memory:              ├────┼────┼────┤   whole number of PIECE bytes
//                                                             │ c… │ c… │ c… │
//     k →  |r0 s0 c…|r0 s1 c…|r0 s2 c…|r1 s0 c…| … |0 0 0|    └────┴────┴────┘   K ends in zeroes up to whole steps
//                                                           s →
// One block, with the default tile in brackets; blocks are numbered channels first, so that neighbours share pixels:
//
//               o: BLOCK_N (64) channels            a warp: BLOCK_M / WARPS_M x BLOCK_N / WARPS_N (64 x 32) outputs in
//   m: BLOCK_M ┌──────────┬──────────┐              16 x 8 tiles of m16n8k32. Weights of a step stay in registers
//   (128)      │ warp 0   │ warp 1   │              while the warp's pixels pass by.
//   pixels     ├──────────┼──────────┤
//              │ warp 2   │ warp 3   │
//              └──────────┴──────────┘
//
// Shared memory is a ring of STAGES stages, each one step of K (64 codes):
//
//   stage ┌ image: BLOCK_M rows of X_BYTES (64, or 32 of 4-bit codes), filled in pieces of PIECE bytes
//         └ w:     BLOCK_N rows of W_BYTES, packed on the host in the same order of k
//
//   piece j of a row  │ 0 │ 1 │ 2 │ 3 │   thread i copies piece i % PIECES of rows i / PIECES, then every
//   (PIECE = 16)      └───┴───┴───┴───┘   THREADS / PIECES rows further: its piece is the same (r, s, c) in all of them
//
// So the place in the filter is worked out once per thread and step, and walks on by additions (`Walk`); per row remain
// two additions and two comparisons. A piece outside the picture, behind the last channel or behind the last tap is
// zero-filled by cp.async and nothing is read: padding, odd channel counts and the end of K cost no branch. That is
// why zero must be code 0 of the activations.
//
// ALIGN_X is what the addresses of pixels and groups are multiples of: 16 copies vectors; 4 copies words, for the 3 channels
// of a first layer stored as 4; 1 gathers words byte by byte, for anything else.
#pragma once

#include "epilogue.cuh"
#include "int4.cuh"
#include "tile.cuh"

constexpr int PIECE = ALIGN_X == 16 ? 16 : 4;

struct Conv {
  const u8* x;       // (pixels, ld_x bytes): s8 codes, or words of eight 4-bit codes
  const u8* w;       // (groups * n, whole steps of W_BYTES)
  s32* partial;      // more than one slice only: BLOCK_M * BLOCK_N sums a tile, 0 before and after every launch
  u32* arrivals;     // one counter a tile, likewise
  s32 m, n;          // output pixels, and output channels of one group
  s32 height, width;
  s32 out_height, out_width;
  s32 kernel_height, kernel_width;
  s32 stride_height, stride_width;
  s32 pad_top, pad_left;
  s32 dilation_height, dilation_width;
  s32 ld_x;
  s32 group_bytes;   // of one group's channels in a pixel
  s32 tap_bytes;     // the same, padded to PIECE
  s32 steps;         // ceil(kernel_height * kernel_width * tap_bytes / X_BYTES)
  s32 slices;        // of K = gridDim.z
};

// How a warp reads its operands. X is a fragment of 16 pixels and W one of 8 channels, over the 64 codes of a step.
// 8-bit activations come by ldmatrix, in the registers and the order that m16n8k32 takes.
struct BytesOfImage {
  static constexpr int X_BYTES = 64;
  typedef StepW4A8::X X;
  static DEVICE void load_x(X& x, const u8* tile, u32 row) {
    load_a<X_BYTES>(x.word[0], shared_address(tile), row, 0);
    load_a<X_BYTES>(x.word[1], shared_address(tile), row, 1);
  }
};

struct ConvS8 : BytesOfImage {
  static constexpr int W_BYTES = 64, SHIFT = 0;
  typedef StepW4A8::W W;
  template <int N>
  static DEVICE void load_w(W (&w)[N], const u8* tile, u32 row) {
    static_assert(N % 2 == 0, "channels come in pairs of fragments");
#pragma unroll
    for (int j = 0; j < N; j += 2)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        u32 pair[4];
        load_b_pair<W_BYTES>(pair, shared_address(tile), row + 8 * j, half);
        w[j].word[half][0] = pair[0], w[j].word[half][1] = pair[1];
        w[j + 1].word[half][0] = pair[2], w[j + 1].word[half][1] = pair[3];
      }
  }
  static DEVICE void multiply(s32 (&c)[4], const X& x, const W& w, int half) { mma_m16n8k32_s8(c, x.word[half], w.word[half]); }
};

// Words of codes, lane by lane as in int4.cuh.
template <class Step>
struct WordsOfWeights {
  static constexpr int W_BYTES = 32, SHIFT = Step::SHIFT;
  typedef typename Step::W W;
  template <int N>
  static DEVICE void load_w(W (&w)[N], const u8* tile, u32 row) {
#pragma unroll
    for (int j = 0; j < N; ++j) Step::template load_w<ADJACENT>(w[j], tile + (row + 8 * j) * W_BYTES, lane_id() / 4, lane_id() % 4);
  }
};

// The host orders the codes of every step so that the two words of a lane, low nibbles then high ones, are the weights of
// the k that ldmatrix gave it: word 2t + i holds k = 32i + 4t.. and 32i + 16 + 4t.. (`kernels.cuda.conv.step_order`).
struct ConvW4A8 : BytesOfImage, WordsOfWeights<StepW4A8> {
  static DEVICE void multiply(s32 (&c)[4], const X& x, const W& w, int half) { mma_m16n8k32_s8(c, x.word[half], w.word[half]); }
};

// 4-bit activations: both sides are words, so any order of k will do.
template <class Step>
struct ConvWords : WordsOfWeights<Step> {
  static constexpr int X_BYTES = 32;
  typedef typename Step::X X;
  static DEVICE void load_x(X& x, const u8* tile, u32 row) {
    Step::template load_x<ADJACENT>(x, tile + row * X_BYTES, lane_id() / 4, lane_id() % 4);
  }
  static DEVICE void multiply(s32 (&c)[4], const X& x, const typename Step::W& w, int half) { Step::multiply(c, x, w, half); }
};
typedef ConvWords<StepW4A4> ConvW4A4;
typedef ConvWords<StepS4> ConvS4;

constexpr s32 FAR_ABOVE = -(1 << 30);  // no tap reaches the picture from there

// Where in the filter a thread's piece of the current step lies.
struct Walk {
  s32 r, s, c;
  s32 step_r, step_s, step_c;

  // Stands at byte `position` of the row and advances by `step` bytes.
  DEVICE void start(const Conv& a, s32 position, s32 step) {
    const s32 tap = position / a.tap_bytes, taps = step / a.tap_bytes;
    r = tap / a.kernel_width, s = tap % a.kernel_width, c = position % a.tap_bytes;
    step_r = taps / a.kernel_width, step_s = taps % a.kernel_width, step_c = step % a.tap_bytes;
  }
  DEVICE void advance(const Conv& a) {
    c += step_c, s += step_s, r += step_r;
    if (c >= a.tap_bytes) c -= a.tap_bytes, ++s;
    if (s >= a.kernel_width) s -= a.kernel_width, ++r;
  }
};

template <class Step>
struct ConvTile {
  static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
  static constexpr int WARP_M = BLOCK_M / WARPS_M, WARP_N = BLOCK_N / WARPS_N;
  static constexpr int TILES_M = WARP_M / 16, TILES_N = WARP_N / 8, TILES = TILES_M * TILES_N;
  static constexpr int X_BYTES = Step::X_BYTES, W_BYTES = Step::W_BYTES;
  static constexpr int PIECES = X_BYTES / PIECE, ROW_STEP = THREADS / PIECES, ROWS = BLOCK_M / ROW_STEP;
  static constexpr int W_AT = BLOCK_M * X_BYTES, STAGE_BYTES = W_AT + BLOCK_N * W_BYTES;
  typedef SliceWriter<OUTPUT, BLOCK_N, THREADS> Writer;
  static_assert(WARP_M % 16 == 0 && WARP_N % 8 == 0, "warps own whole tiles");
  static_assert(THREADS % PIECES == 0 && BLOCK_M % ROW_STEP == 0, "every thread copies one piece of whole rows");
  static_assert(ROW_STEP % 8 == 0, "a thread's rows are laid out alike");
  static_assert(16 * WARPS_M * Writer::PITCH * 4 <= STAGES * STAGE_BYTES, "a slice of sums fits into the ring");

  // The rows that a thread copies: byte of the patch's first pixel, and that pixel's place, outside the picture or not.
  struct Rows { s64 at[ROWS]; s32 h[ROWS], w[ROWS]; };

  static DEVICE void find_rows(Rows& rows, const Conv& a, s32 row0) {
#pragma unroll
    for (int j = 0; j < ROWS; ++j) {
      const s32 m = row0 + static_cast<s32>(threadIdx.x) / PIECES + j * ROW_STEP;
      const s32 q = m % a.out_width, p = m / a.out_width % a.out_height, n = m / a.out_width / a.out_height;
      rows.h[j] = m < a.m ? p * a.stride_height - a.pad_top : FAR_ABOVE;
      rows.w[j] = q * a.stride_width - a.pad_left;
      rows.at[j] = ((static_cast<s64>(n) * a.height + rows.h[j]) * a.width + rows.w[j]) * a.ld_x;
    }
  }

  static DEVICE bool seen(const Conv& a, const Rows& rows, int j, s32 dh, s32 dw) {
    return static_cast<u32>(rows.h[j] + dh) < static_cast<u32>(a.height) &&
           static_cast<u32>(rows.w[j] + dw) < static_cast<u32>(a.width);
  }

  static DEVICE void load_image(u8* stage, const Conv& a, const u8* x, const Rows& rows, const Walk& walk) {
    const s32 dh = walk.r * a.dilation_height, dw = walk.s * a.dilation_width;
    const u8* tap = x + ((dh * a.width + dw) * a.ld_x + walk.c);  // one picture is below 2 GiB
    const s32 left = walk.r < a.kernel_height ? a.group_bytes - walk.c : 0, valid = left < PIECE ? left : PIECE;
    const u32 byte = threadIdx.x % PIECES * PIECE;
    u8* to = stage + chunk_place<X_BYTES>(threadIdx.x / PIECES, byte / 16) + byte % 16;
    const u32 address = shared_address(to);
#pragma unroll
    for (int j = 0; j < ROWS; ++j) {
      const s32 counts = seen(a, rows, j, dh, dw) ? valid : 0;
      const u8* from = tap + rows.at[j];
      if constexpr (ALIGN_X == 16) {
        cp_async_16(address + j * ROW_STEP * X_BYTES, from, counts);
      } else if constexpr (ALIGN_X == 4) {
        cp_async_4(address + j * ROW_STEP * X_BYTES, from, counts);
      } else {
        u32 word = 0;
#pragma unroll
        for (int i = 0; i < PIECE; ++i)
          if (i < counts) word |= static_cast<u32>(from[i]) << (8 * i);
        store_shared_4(address + j * ROW_STEP * X_BYTES, word);
      }
    }
  }

  static DEVICE void multiply_step(s32 (&sums)[TILES][4], const u8* stage, u32 warp_m, u32 warp_n) {
    typename Step::W w[TILES_N];
    Step::load_w(w, stage + W_AT, warp_n * WARP_N);
#pragma unroll
    for (int i = 0; i < TILES_M; ++i) {
      typename Step::X x;
      Step::load_x(x, stage, warp_m * WARP_M + 16 * i);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int j = 0; j < TILES_N; ++j) Step::multiply(sums[i * TILES_N + j], x, w[j], half);
    }
  }

  // Few pixels leave most of the machine idle, so `slices` blocks share the K of one output tile. They add their sums in
  // memory, in any order because integers do not mind; the block that comes last takes the total out and clears it for
  // the next launch. Returns true there. `flag` is a word of shared memory that nobody uses.
  static DEVICE bool add_slices(s32 (&sums)[TILES][4], const Conv& a, u32* flag) {
    const s32 tile = static_cast<s32>(blockIdx.y * gridDim.x + blockIdx.x);
    s32* mine = a.partial + static_cast<s64>(tile) * BLOCK_M * BLOCK_N + threadIdx.x;
#pragma unroll
    for (int i = 0; i < 4 * TILES; ++i) add_in_memory(mine + i * THREADS, sums[i / 4][i % 4]);
    fence_device();
    __syncthreads();
    if (threadIdx.x == 0) *flag = count_in_memory(a.arrivals + tile, a.slices);
    __syncthreads();
    if (!*flag) return false;
    fence_device();
#pragma unroll
    for (int i = 0; i < 4 * TILES; ++i) {
      sums[i / 4][i % 4] = load_from_l2(mine + i * THREADS);
      mine[i * THREADS] = 0;
    }
    return true;
  }

  // One row of 16 x 8 tiles of every warp at a time goes through shared memory to the epilogue. The loop stays a loop, and
  // the next row is moved to where the first was: choosing it by the loop variable put all sums into local memory here.
  static DEVICE void write(s32 (&sums)[TILES][4], const Epilogue& e, u8* shared, s32 row0, s32 column0, s32 rows,
                           s32 columns, u32 warp_m, u32 warp_n) {
    struct alignas(8) Pair { s32 x, y; };
    constexpr int SHIFT = Step::SHIFT;  // exact: every product of a step carries the factor
    Writer writer(e, column0, rows, columns);
    if (column0 % Writer::WIDTH != 0) writer.out_by_vectors = writer.residual_by_vectors = false;  // a group starts anywhere
    s32* slice = reinterpret_cast<s32*>(shared);
    s32* mine = slice + (warp_m * 16 + lane_id() / 4) * Writer::PITCH + warp_n * WARP_N + 2 * (lane_id() % 4);
#pragma unroll 1
    for (s32 i = 0; i < TILES_M; ++i) {
#pragma unroll
      for (int j = 0; j < TILES_N; ++j) {
        *reinterpret_cast<Pair*>(mine + 8 * j) = {sums[j][0] >> SHIFT, sums[j][1] >> SHIFT};
        *reinterpret_cast<Pair*>(mine + 8 * Writer::PITCH + 8 * j) = {sums[j][2] >> SHIFT, sums[j][3] >> SHIFT};
      }
      __syncthreads();
      writer.write(slice, 16 * WARPS_M, [&](s32 r) { return row0 + r / 16 * WARP_M + 16 * i + r % 16; });
      __syncthreads();
#pragma unroll
      for (int tile = TILES_N; tile < TILES; ++tile)
#pragma unroll
        for (int v = 0; v < 4; ++v) sums[tile - TILES_N][v] = sums[tile][v];
    }
  }

  static DEVICE void run(const Conv& a, const Epilogue& e, u8* shared) {
    const u32 warp_m = threadIdx.x / 32 / WARPS_N, warp_n = threadIdx.x / 32 % WARPS_N;
    // Neighbouring blocks share pixels: the picture is what does not stay in cache.
    const s32 tiles_n = (a.n + BLOCK_N - 1) / BLOCK_N, group = blockIdx.y;
    const s32 row0 = static_cast<s32>(blockIdx.x) / tiles_n * BLOCK_M, column0 = static_cast<s32>(blockIdx.x) % tiles_n * BLOCK_N;
    const s32 first = static_cast<s32>(static_cast<s64>(a.steps) * blockIdx.z / a.slices);
    const s32 last = static_cast<s32>(static_cast<s64>(a.steps) * (blockIdx.z + 1) / a.slices);
    const s32 ld_w = a.steps * W_BYTES;
    const u8* x = a.x + static_cast<s64>(group) * a.group_bytes;

    Rows rows;
    find_rows(rows, a, row0);
    Walk walk;
    walk.start(a, first * X_BYTES + static_cast<s32>(threadIdx.x) % PIECES * PIECE, X_BYTES);
    TileLoader<BLOCK_N, W_BYTES, THREADS, 16> load_w(a.w + static_cast<s64>(group) * a.n * ld_w, ld_w, column0, a.n,
                                                     first * W_BYTES, ld_w);
    const auto fill = [&](u8* stage) {
      load_image(stage, a, x, rows, walk);
      walk.advance(a);
      load_w.next(shared_address(stage + W_AT));
    };

    s32 sums[TILES][4] = {};
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
      if (first + s < last) fill(shared + s * STAGE_BYTES);
      cp_async_commit();  // also when empty: the waits below count groups
    }
    s32 read = 0, free = STAGES - 1;
#pragma unroll 1
    for (s32 step = first; step < last; ++step) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();
      if (step + STAGES - 1 < last) fill(shared + free * STAGE_BYTES);
      cp_async_commit();
      multiply_step(sums, shared + read * STAGE_BYTES, warp_m, warp_n);
      read = read + 1 == STAGES ? 0 : read + 1;
      free = free + 1 == STAGES ? 0 : free + 1;
    }
    cp_async_wait<0>();
    __syncthreads();  // the stages may be reused from here on
    if constexpr (SPLIT_K) {
      if (!add_slices(sums, a, reinterpret_cast<u32*>(shared))) return;
      __syncthreads();
    }
    write(sums, e, shared, row0, group * a.n + column0, a.m, (group + 1) * a.n, warp_m, warp_n);
  }
};
