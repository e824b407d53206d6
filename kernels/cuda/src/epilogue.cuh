// Epilogue: what happens to an accumulator after the last product, the same for every kernel of the package.
//
//   integer sum ──(+ bias[n])── scale ──(+ residual)── ReLU ── round, clamp ── out
//
// To codes (OUT_S8, OUT_U8), by floats:  q = rint(acc * scale[n] + (r - zr) * residual_scale) + zero_point
//                     or integers only:  q = (acc * m[n] >> e[n]) + ((r - zr) * mr >> er)     + zero_point
// where `>>` rounds half up (add 2^(e-1) before the shift) and `rint` rounds half to even; ReLU and the code range are
// one clamp to [clamp_low, clamp_high]. The second form is chosen by a non-null `multiplier`.
// To floats (OUT_F32, OUT_F16, OUT_BF16):  y = acc * scale[n] * row_scale[m] + offset[n] + r, then ReLU.
// OUT_S32 stores acc + bias.
//
// Float arithmetic is written with separately rounded operations in this order: numpy repeats it bit for bit.
// `kernels.cuda.epilogue.EpilogueArguments` mirrors the struct.
#pragma once

#include "primitives.cuh"

enum Output { OUT_S32, OUT_F32, OUT_F16, OUT_BF16, OUT_S8, OUT_U8 };

struct Epilogue {
  void* out;                // (M, ld_out), row-major, of the output type
  const s32* bias;          // (N) at the accumulator's scale, or null
  const float* scale;       // (N); unused by OUT_S32 and by integer-only requantization
  const s32* multiplier;    // (N) mantissas of the integer-only form, or null
  const s32* shift;         // (N) exponents beside them, 1 .. 62
  const float* row_scale;   // (M) scales of activations quantized row by row, or null; float outputs only
  const float* offset;      // (N) float bias, or null; float outputs only
  const void* residual;     // (M, ld_residual) of the output type, or null
  s32 ld_out;               // elements from row to row
  s32 ld_residual;
  float residual_scale;     // scale of the residual's codes over the output's
  s32 residual_multiplier;  // the same as mantissa and exponent
  s32 residual_shift;
  s32 residual_zero_point;
  s32 zero_point;           // of the output codes
  s32 clamp_low;            // code range of the output; the zero point here makes it a ReLU
  s32 clamp_high;
  s32 relu;                 // float outputs: negative values become 0
};

template <int OUT> struct OutputType;
template <> struct OutputType<OUT_S32> { typedef s32 type; };
template <> struct OutputType<OUT_F32> { typedef float type; };
template <> struct OutputType<OUT_F16> { typedef u16 type; };
template <> struct OutputType<OUT_BF16> { typedef u16 type; };
template <> struct OutputType<OUT_S8> { typedef s8 type; };
template <> struct OutputType<OUT_U8> { typedef u8 type; };

DEVICE s32 clamp(s64 value, s32 low, s32 high) {
  return value < low ? low : value > high ? high : static_cast<s32>(value);
}

// acc * m / 2^e rounded half up, in integers only.
DEVICE s64 dyadic(s32 acc, s32 m, s32 e) {
  return (static_cast<s64>(acc) * m + (static_cast<s64>(1) << (e - 1))) >> e;
}

// x rounded half to even, as a 64-bit number so that adding a zero point cannot overflow.
DEVICE s64 rounded(float x) { return round_half_even(x); }

template <int OUT>
DEVICE float residual_value(const Epilogue& e, s64 at) {
  if constexpr (OUT == OUT_F32) return static_cast<const float*>(e.residual)[at];
  if constexpr (OUT == OUT_F16) return half_to_float(static_cast<const u16*>(e.residual)[at]);
  if constexpr (OUT == OUT_BF16) return bfloat16_to_float(static_cast<const u16*>(e.residual)[at]);
  return 0.0f;
}

template <int OUT>
DEVICE typename OutputType<OUT>::type from_float(float y) {
  if constexpr (OUT == OUT_F16) return float_to_half(y);
  else if constexpr (OUT == OUT_BF16) return float_to_bfloat16(y);
  else return static_cast<typename OutputType<OUT>::type>(y);
}

// A scaled value of a float kernel or a finished product, with offset, residual and ReLU: rows and columns are inside.
template <int OUT>
DEVICE typename OutputType<OUT>::type finish_float(const Epilogue& e, s32 row, s32 column, float y) {
  if (e.offset) y = add(y, e.offset[column]);
  if (e.residual) y = add(y, residual_value<OUT>(e, static_cast<s64>(row) * e.ld_residual + column));
  if (e.relu) y = y > 0.0f ? y : 0.0f;
  return from_float<OUT>(y);
}

// The residual's code at an element, less its zero point.
template <int OUT>
DEVICE s32 residual_code(const Epilogue& e, s32 row, s32 column) {
  const s64 at = static_cast<s64>(row) * e.ld_residual + column;
  return static_cast<s32>(static_cast<const typename OutputType<OUT>::type*>(e.residual)[at]) - e.residual_zero_point;
}

// The output element of a sum that is a float already and was multiplied by scale[column].
template <int OUT>
DEVICE typename OutputType<OUT>::type finish_scaled(const Epilogue& e, s32 row, s32 column, float y) {
  static_assert(OUT != OUT_S32, "a scaled sum is no integer");
  if constexpr (OUT == OUT_S8 || OUT == OUT_U8) {
    if (e.residual) y = add(y, multiply(static_cast<float>(residual_code<OUT>(e, row, column)), e.residual_scale));
    return static_cast<typename OutputType<OUT>::type>(clamp(rounded(y) + e.zero_point, e.clamp_low, e.clamp_high));
  } else {
    if (e.row_scale) y = multiply(y, e.row_scale[row]);
    return finish_float<OUT>(e, row, column, y);
  }
}

// The output element of one integer accumulator. `row` < M and `column` < N.
template <int OUT>
DEVICE typename OutputType<OUT>::type finish(const Epilogue& e, s32 row, s32 column, s32 acc) {
  if (e.bias) acc += e.bias[column];
  if constexpr (OUT == OUT_S32) {
    return acc;
  } else {
    if constexpr (OUT == OUT_S8 || OUT == OUT_U8) {
      if (e.multiplier) {
        s64 q = dyadic(acc, e.multiplier[column], e.shift[column]);
        if (e.residual) q += dyadic(residual_code<OUT>(e, row, column), e.residual_multiplier, e.residual_shift);
        return static_cast<typename OutputType<OUT>::type>(clamp(q + e.zero_point, e.clamp_low, e.clamp_high));
      }
    }
    return finish_scaled<OUT>(e, row, column, multiply(static_cast<float>(acc), e.scale[column]));
  }
}

// Rows of a finished tile leave through shared memory, so that a warp writes whole lines instead of pairs.
// `tile` holds ROWS x COLUMNS elements with PITCH elements from row to row (PITCH * size a multiple of 16 bytes);
// rows from `rows` on and columns from `columns` on lie outside the matrix. All THREADS threads take part, after a barrier.
template <int OUT, int ROWS, int COLUMNS, int PITCH, int THREADS>
DEVICE void write_tile(const Epilogue& e, const void* tile, s32 row0, s32 column0, s32 rows, s32 columns) {
  typedef typename OutputType<OUT>::type Element;
  constexpr int PER_VECTOR = 16 / sizeof(Element);
  constexpr int VECTORS = COLUMNS / PER_VECTOR;
  static_assert(COLUMNS % PER_VECTOR == 0 && PITCH * sizeof(Element) % 16 == 0, "rows of whole vectors");
  const Element* staged = static_cast<const Element*>(tile);
  Element* out = static_cast<Element*>(e.out);
  const bool aligned = e.ld_out % PER_VECTOR == 0 && reinterpret_cast<u64>(e.out) % 16 == 0;
  for (int i = threadIdx.x; i < ROWS * VECTORS; i += THREADS) {
    const int r = i / VECTORS, c = i % VECTORS * PER_VECTOR;
    if (row0 + r >= rows || column0 + c >= columns) continue;
    Element* to = out + static_cast<s64>(row0 + r) * e.ld_out + column0 + c;
    const Element* from = staged + r * PITCH + c;
    if (aligned && column0 + c + PER_VECTOR <= columns) {
      *reinterpret_cast<Vector16*>(to) = *reinterpret_cast<const Vector16*>(from);
    } else {
      for (int j = 0; j < PER_VECTOR && column0 + c + j < columns; ++j) to[j] = from[j];
    }
  }
}
