// Depthwise INT8 convolution: every output channel sees one input channel (o / multiplier), so there is no reduction
// over channels and no work for a tensor core. Four taps of one channel make one dp4a.
//
//   in memory (NHWC)                 a thread: 4 channels x PIXELS neighbouring outputs of a row
//     tap 0  | c0 c1 c2 c3 |
//     tap 1  | c0 c1 c2 c3 |   4 x 4 bytes      | c0: tap 0 1 2 3 |   each row against a word of
//     tap 2  | c0 c1 c2 c3 |   transposed  →    | c1: tap 0 1 2 3 |   weights: one dp4a
//     tap 3  | c0 c1 c2 c3 |   by 8 permutes    | c2 …, c3 …      |
//
//   w  [ceil(taps / 4)][channels padded to 4]  words of four taps of one channel, zero behind the last tap: the four
//      channels of a thread are one 16-byte load, shared by its PIXELS outputs
//   grid: x over pieces of PIXELS outputs of all rows, y over blocks of THREADS_C groups of four channels
//
// Neighbouring threads take neighbouring channels, so a warp reads whole lines; a tap outside the picture is a zero word.
#include "epilogue.cuh"

struct Depthwise {
  const u8* x;        // (pixels, ld_x bytes) of s8 codes
  const u32* w;
  s32 channels;       // of the output
  s32 multiplier;     // output channels per input channel
  s32 batch;
  s32 height, width;
  s32 out_height, out_width;
  s32 kernel_height, kernel_width;
  s32 stride_height, stride_width;
  s32 pad_top, pad_left;
  s32 dilation_height, dilation_width;
  s32 ld_x;
};

constexpr int LANES_C = 4;  // channels of a thread

// The bytes of input channels of outputs c .. c+3 at one pixel. ALIGN_X 4: pixels are whole words and the multiplier is 1;
// what lies behind the last channel meets weights that are 0. ALIGN_X 1: anything.
DEVICE u32 load_four(const Depthwise& a, const u8* pixel, s32 c) {
  if constexpr (ALIGN_X == 4) return *reinterpret_cast<const u32*>(pixel + c);
  u32 word = 0;
#pragma unroll 1
  for (int i = 0; i < LANES_C; ++i) {
    if (c + i < a.channels) word |= static_cast<u32>(pixel[(c + i) / a.multiplier]) << (8 * i);
  }
  return word;
}

DEVICE void transpose(u32 (&v)[4]) {
  const u32 low01 = permute_bytes(v[0], v[1], 0x5140), high01 = permute_bytes(v[0], v[1], 0x7362);
  const u32 low23 = permute_bytes(v[2], v[3], 0x5140), high23 = permute_bytes(v[2], v[3], 0x7362);
  v[0] = permute_bytes(low01, low23, 0x5410), v[1] = permute_bytes(low01, low23, 0x7632);
  v[2] = permute_bytes(high01, high23, 0x5410), v[3] = permute_bytes(high01, high23, 0x7632);
}

// The sums of `pixels` neighbouring outputs from matrix row `row` on. A loop, and the next pixel is moved to where the
// first was, because registers cannot be indexed.
DEVICE void write(const Depthwise& a, const Epilogue& e, s32 (&sums)[PIXELS][LANES_C], s32 row, s32 pixels, s32 c) {
  typedef typename OutputType<OUTPUT>::type Element;
  Column<OUTPUT> columns[LANES_C];
#pragma unroll
  for (int j = 0; j < LANES_C; ++j)
    if (c + j < a.channels) columns[j] = Column<OUTPUT>(e, c + j);
#pragma unroll 1
  for (s32 i = 0; i < pixels; ++i) {
    Element* to = static_cast<Element*>(e.out) + static_cast<s64>(row + i) * e.ld_out + c;
#pragma unroll
    for (int j = 0; j < LANES_C; ++j)
      if (c + j < a.channels) to[j] = columns[j].finish(e, row + i, sums[0][j], residual_at<OUTPUT>(e, row + i, c + j));
#pragma unroll
    for (int k = 1; k < PIXELS; ++k)
#pragma unroll
      for (int j = 0; j < LANES_C; ++j) sums[k - 1][j] = sums[k][j];
  }
}

KERNEL void __launch_bounds__(THREADS_C * THREADS_P) conv_depthwise(const Depthwise a, const Epilogue e) {
  const s32 c = (static_cast<s32>(blockIdx.y) * THREADS_C + static_cast<s32>(threadIdx.x) % THREADS_C) * LANES_C;
  const s32 pieces = (a.out_width + PIXELS - 1) / PIXELS;
  const s32 piece = static_cast<s32>(blockIdx.x) * THREADS_P + static_cast<s32>(threadIdx.x) / THREADS_C;
  if (c >= a.channels || piece >= a.batch * a.out_height * pieces) return;
  const s32 q0 = piece % pieces * PIXELS, p = piece / pieces % a.out_height, n = piece / pieces / a.out_height;
  const s32 h0 = p * a.stride_height - a.pad_top, w0 = q0 * a.stride_width - a.pad_left;
  const u8* picture = a.x + static_cast<s64>(n) * a.height * a.width * a.ld_x;
  const s32 taps = a.kernel_height * a.kernel_width, ld_w = (a.channels + LANES_C - 1) / LANES_C * LANES_C;

  s32 sums[PIXELS][LANES_C] = {};
  s32 r = 0, s = 0;
#pragma unroll 1
  for (s32 tap = 0; tap < taps; tap += 4) {
    const Vector16 weights = *reinterpret_cast<const Vector16*>(a.w + static_cast<s64>(tap / 4) * ld_w + c);
    s32 dh[4], dw[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      dh[i] = tap + i < taps ? r * a.dilation_height : -(1 << 30), dw[i] = s * a.dilation_width;
      if (++s == a.kernel_width) s = 0, ++r;
    }
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
      u32 v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const s32 h = h0 + dh[k], w = w0 + i * a.stride_width + dw[k];
        const bool seen = static_cast<u32>(h) < static_cast<u32>(a.height) && static_cast<u32>(w) < static_cast<u32>(a.width);
        v[k] = seen ? load_four(a, picture + (h * a.width + w) * a.ld_x, c) : 0;  // one picture is below 2 GiB
      }
      transpose(v);
      sums[i][0] = dot4_s8(v[0], weights.x, sums[i][0]), sums[i][1] = dot4_s8(v[1], weights.y, sums[i][1]);
      sums[i][2] = dot4_s8(v[2], weights.z, sums[i][2]), sums[i][3] = dot4_s8(v[3], weights.w, sums[i][3]);
    }
  }
  write(a, e, sums, (n * a.out_height + p) * a.out_width + q0, min(PIXELS, a.out_width - q0), c);
}
