// Four-bit operands on eight-bit tensor cores, and on four-bit ones where they exist.
//
// Every row of a 4-bit matrix is words of 8 codes, K padded to 64 (`kernels.cuda.packing`): byte j of word w has code
// 8w+j in its low nibble and 8w+4+j in its high one. So a shift and a mask make int8 values of 16 times the code:
//
//   w              b3a3 b2a2 b1a1 b0a0      (nibbles; a = k 8w..8w+3, b = k 8w+4..8w+7)
//   low(w)         a3 0 a2 0 a1 0 a0 0      = 16 a, sign in place
//   high(w)        b3 0 b2 0 b1 0 b0 0      = 16 b
//
// One m16n8k32 consumes one word per lane: low(w) is the register of k = 4t..4t+3, high(w) that of k = 16+4t.. . The
// accumulator then holds 16 or 256 times the sum, exactly. Terms are at most 16384, with a 4-bit as with an 8-bit
// partner, so it fits as long as K < 131072.
//
// A step is K = 64, 8 words a row, two per lane. A dot product does not depend on the order of its terms, so lanes take
// the words that are cheapest to load, the same in both operands:
//
//   ADJACENT  lane 4g+t: words 2t, 2t+1 of row g; 8-bit partner: its bytes 16t..16t+15, one 16-byte load
//   HALVES    lane 4g+t: words t, t+4: the first instruction covers k < 32 and the second the rest, for groups of 32
#pragma once

#include "primitives.cuh"

constexpr u32 NIBBLES = 0xF0F0F0F0u;

DEVICE u32 times16_low(u32 w) { return (w << 4) & NIBBLES; }
DEVICE u32 times16_high(u32 w) { return w & NIBBLES; }

enum WordOrder { ADJACENT, HALVES };

// The two words of a lane from a row's 32 bytes of one step.
template <WordOrder ORDER>
DEVICE void load_words(u32 (&words)[2], const u8* row, u32 t) {
  if constexpr (ORDER == ADJACENT) {
    const Vector8 pair = *reinterpret_cast<const Vector8*>(row + 8 * t);
    words[0] = pair.x, words[1] = pair.y;
  } else {
    words[0] = *reinterpret_cast<const u32*>(row + 4 * t), words[1] = *reinterpret_cast<const u32*>(row + 16 + 4 * t);
  }
}

// 8-bit rows are 64 bytes a step, in four chunks of 16, laid out as in tile.cuh: chunk c of row r is at place c ^ of(r).
struct ByteRows {
  static DEVICE u32 of(u32 row) { return row / 2 & 3; }
};

// 16 activations of a lane as registers in the order (first word: low, high; second word: low, high).
template <WordOrder ORDER>
DEVICE void load_bytes(u32 (&bytes)[4], const u8* row, u32 t, u32 place) {
  if constexpr (ORDER == ADJACENT) {
    const Vector16 v = *reinterpret_cast<const Vector16*>(row + 16 * (t ^ place));
    bytes[0] = v.x, bytes[1] = v.y, bytes[2] = v.z, bytes[3] = v.w;
  } else {
    const u8* half = row + 8 * (t & 1);
    const Vector8 near = *reinterpret_cast<const Vector8*>(half + 16 * (t / 2 ^ place));
    const Vector8 far = *reinterpret_cast<const Vector8*>(half + 16 * ((2 + t / 2) ^ place));
    bytes[0] = near.x, bytes[1] = near.y, bytes[2] = far.x, bytes[3] = far.y;
  }
}

// What differs between the kernels: the bytes of a row of activations per step, the power of two that the accumulator
// carries, and how fragments are loaded and multiplied. `X` is a fragment of 16 rows and `W` one of 8 channels,
// which start at `rows`; the lane is 4g + t.
struct StepW4A8 {
  static constexpr int X_BYTES = 64;
  static constexpr int SHIFT = 4;
  struct X { u32 word[2][4]; };
  struct W { u32 word[2][2]; };

  template <WordOrder ORDER>
  static DEVICE void load_x(X& x, const u8* rows, int g, int t) {
    u32 top[4], low[4];
    load_bytes<ORDER>(top, rows + g * X_BYTES, t, ByteRows::of(g));
    load_bytes<ORDER>(low, rows + (g + 8) * X_BYTES, t, ByteRows::of(g));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      x.word[i][0] = top[2 * i], x.word[i][1] = low[2 * i];
      x.word[i][2] = top[2 * i + 1], x.word[i][3] = low[2 * i + 1];
    }
  }
  template <WordOrder ORDER>
  static DEVICE void load_w(W& w, const u8* rows, int g, int t) {
    u32 words[2];
    load_words<ORDER>(words, rows + g * 32, t);
#pragma unroll
    for (int i = 0; i < 2; ++i) w.word[i][0] = times16_low(words[i]), w.word[i][1] = times16_high(words[i]);
  }
  // The half `i` of a step: 32 of its 64 k.
  static DEVICE void multiply(s32 (&c)[4], const X& x, const W& w, int i) { mma_m16n8k32_s8(c, x.word[i], w.word[i]); }
};

struct StepW4A4 {
  static constexpr int X_BYTES = 32;
  static constexpr int SHIFT = 8;
  struct X { u32 word[2][4]; };
  typedef StepW4A8::W W;

  template <WordOrder ORDER>
  static DEVICE void load_x(X& x, const u8* rows, int g, int t) {
    u32 top[2], low[2];
    load_words<ORDER>(top, rows + g * X_BYTES, t);
    load_words<ORDER>(low, rows + (g + 8) * X_BYTES, t);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      x.word[i][0] = times16_low(top[i]), x.word[i][1] = times16_low(low[i]);
      x.word[i][2] = times16_high(top[i]), x.word[i][3] = times16_high(low[i]);
    }
  }
  template <WordOrder ORDER>
  static DEVICE void load_w(W& w, const u8* rows, int g, int t) { StepW4A8::load_w<ORDER>(w, rows, g, t); }
  static DEVICE void multiply(s32 (&c)[4], const X& x, const W& w, int i) { mma_m16n8k32_s8(c, x.word[i], w.word[i]); }
};

// Native: m16n8k64 takes both words of a lane at once, and the codes themselves. From sm_90 on it compiles to an
// emulation of some 190 instructions; use StepW4A4 there.
struct StepS4 {
  static constexpr int X_BYTES = 32;
  static constexpr int SHIFT = 0;
  struct X { u32 word[4]; };
  struct W { u32 word[2]; };

  template <WordOrder ORDER>
  static DEVICE void load_x(X& x, const u8* rows, int g, int t) {
    u32 top[2], low[2];
    load_words<ORDER>(top, rows + g * X_BYTES, t);
    load_words<ORDER>(low, rows + (g + 8) * X_BYTES, t);
    x.word[0] = top[0], x.word[1] = low[0], x.word[2] = top[1], x.word[3] = low[1];
  }
  template <WordOrder ORDER>
  static DEVICE void load_w(W& w, const u8* rows, int g, int t) { load_words<ORDER>(w.word, rows + g * 32, t); }
  static DEVICE void multiply(s32 (&c)[4], const X& x, const W& w, int i) {
    if (i == 0) mma_m16n8k64_s4(c, x.word, w.word);
  }
};

// The same steps with the operands exchanged: weights are the 16 rows of a product and activations its 8 columns. Then
// the four registers of a 16-byte load of 8-bit activations are two B operands as they come, while an A operand would
// need values of two rows side by side and a move for each. Sums are transposed: c[0], c[1] belong to channel g and rows
// 2t, 2t+1; c[2], c[3] to channel g+8.
template <class Step>
struct WeightsFirst {  // both operands are words
  static constexpr int X_BYTES = Step::X_BYTES, SHIFT = Step::SHIFT;
  typedef typename Step::X W;
  typedef typename Step::W X;

  template <WordOrder ORDER>
  static DEVICE void load_w(W& w, const u8* rows, int g, int t) { Step::template load_x<ORDER>(w, rows, g, t); }
  template <WordOrder ORDER>
  static DEVICE void load_x(X& x, const u8* rows, int g, int t) { Step::template load_w<ORDER>(x, rows, g, t); }
  static DEVICE void multiply(s32 (&c)[4], const W& w, const X& x, int i) { Step::multiply(c, w, x, i); }
};

template <>
struct WeightsFirst<StepW4A8> {
  static constexpr int X_BYTES = 64, SHIFT = 4;
  typedef StepW4A4::X W;
  struct X { u32 word[2][2]; };

  template <WordOrder ORDER>
  static DEVICE void load_w(W& w, const u8* rows, int g, int t) { StepW4A4::load_x<ORDER>(w, rows, g, t); }
  template <WordOrder ORDER>
  static DEVICE void load_x(X& x, const u8* rows, int g, int t) {
    u32 bytes[4];
    load_bytes<ORDER>(bytes, rows + g * X_BYTES, t, ByteRows::of(g));
#pragma unroll
    for (int i = 0; i < 4; ++i) x.word[i / 2][i % 2] = bytes[i];
  }
  static DEVICE void multiply(s32 (&c)[4], const W& w, const X& x, int i) { mma_m16n8k32_s8(c, w.word[i], x.word[i]); }
};
