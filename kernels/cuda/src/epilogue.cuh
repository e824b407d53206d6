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
DEVICE float to_float(typename OutputType<OUT>::type value) {
  if constexpr (OUT == OUT_F16) return half_to_float(value);
  else if constexpr (OUT == OUT_BF16) return bfloat16_to_float(value);
  else return static_cast<float>(value);
}

template <int OUT>
DEVICE typename OutputType<OUT>::type from_float(float y) {
  if constexpr (OUT == OUT_F16) return float_to_half(y);
  else if constexpr (OUT == OUT_BF16) return float_to_bfloat16(y);
  else return static_cast<typename OutputType<OUT>::type>(y);
}

// What the epilogue knows of one output column.
template <int OUT>
struct Column {
  static constexpr bool CODES = OUT == OUT_S8 || OUT == OUT_U8;
  static constexpr bool FLOATS = OUT == OUT_F32 || OUT == OUT_F16 || OUT == OUT_BF16;
  typedef typename OutputType<OUT>::type Element;

  s32 bias = 0, multiplier = 0, shift = 1;
  float scale = 0.0f, offset = 0.0f;

  DEVICE Column() {}
  DEVICE Column(const Epilogue& e, s32 column) {
    if (e.bias) bias = e.bias[column];
    if (CODES && e.multiplier) {
      multiplier = e.multiplier[column];
      shift = e.shift[column];
    } else if (OUT != OUT_S32) {
      scale = e.scale[column];
    }
    if (FLOATS && e.offset) offset = e.offset[column];
  }

  // The output element of a sum; `other` is the residual's element, read only where there is a residual.
  DEVICE Element finish(const Epilogue& e, s32 row, s32 sum, Element other) const {
    sum += bias;
    if constexpr (OUT == OUT_S32) {
      return sum;
    } else {
      if constexpr (CODES) {
        if (e.multiplier) {
          s64 q = dyadic(sum, multiplier, shift);
          if (e.residual) q += dyadic(code(e, other), e.residual_multiplier, e.residual_shift);
          return static_cast<Element>(clamp(q + e.zero_point, e.clamp_low, e.clamp_high));
        }
      }
      return finish(e, row, static_cast<float>(sum), other);
    }
  }

  // A sum that is a float already has no integer bias and no integer-only form.
  DEVICE Element finish(const Epilogue& e, s32 row, float sum, Element other) const {
    float y = multiply(sum, scale);
    if constexpr (CODES) {
      if (e.residual) y = add(y, multiply(static_cast<float>(code(e, other)), e.residual_scale));
      return static_cast<Element>(clamp(rounded(y) + e.zero_point, e.clamp_low, e.clamp_high));
    } else {
      if (e.row_scale) y = multiply(y, e.row_scale[row]);
      if (e.offset) y = add(y, offset);
      if (e.residual) y = add(y, to_float<OUT>(other));
      if (e.relu) y = y > 0.0f ? y : 0.0f;
      return from_float<OUT>(y);
    }
  }

 private:
  static DEVICE s32 code(const Epilogue& e, Element other) { return static_cast<s32>(other) - e.residual_zero_point; }
};

template <int OUT>
DEVICE typename OutputType<OUT>::type residual_at(const Epilogue& e, s32 row, s32 column) {
  typedef typename OutputType<OUT>::type Element;
  if (!e.residual) return Element(0);
  return static_cast<const Element*>(e.residual)[static_cast<s64>(row) * e.ld_residual + column];
}

// One element by itself, for kernels without tiles: `row` < M and `column` < N.
template <int OUT, class Sum>
DEVICE typename OutputType<OUT>::type finish(const Epilogue& e, s32 row, s32 column, Sum sum) {
  return Column<OUT>(e, column).finish(e, row, sum, residual_at<OUT>(e, row, column));
}

// Sums leave in slices through shared memory. A fragment holds two neighbours of a row and would write pairs; from a
// slice every thread takes four neighbours, so that a warp writes whole lines, and keeps its four columns' parameters in
// registers for all rows. It also keeps the code small: one copy of the arithmetic and not one per accumulator.
//
// A slice is rows of COLUMNS sums (s32 or float) with PITCH from row to row; 8 words of padding let the four rows that
// half a warp writes at once fall on different banks.
template <int OUT, int COLUMNS, int THREADS>
struct SliceWriter {
  static constexpr int WIDTH = 4;
  static constexpr int PITCH = COLUMNS + 8;
  static constexpr int VECTORS = COLUMNS / WIDTH;
  static constexpr int ROWS_AT_ONCE = THREADS / VECTORS;
  static_assert(COLUMNS % WIDTH == 0 && THREADS % VECTORS == 0, "a thread keeps its columns");
  typedef typename OutputType<OUT>::type Element;
  struct alignas(WIDTH * sizeof(Element)) Vector { Element at[WIDTH]; };

  const Epilogue& e;
  Column<OUT> columns[WIDTH];
  s32 first, inside, rows;  // first of this thread's columns, how many of them are in the matrix, its rows
  bool out_by_vectors, residual_by_vectors;

  DEVICE SliceWriter(const Epilogue& e, s32 column0, s32 rows, s32 n) : e(e), rows(rows) {
    first = column0 + static_cast<s32>(thread() % VECTORS) * WIDTH;
    inside = n - first < 0 ? 0 : n - first < WIDTH ? n - first : WIDTH;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
      if (i < inside) columns[i] = Column<OUT>(e, first + i);
    out_by_vectors = inside == WIDTH && by_vectors(e.out, e.ld_out);
    residual_by_vectors = e.residual && inside == WIDTH && by_vectors(e.residual, e.ld_residual);
  }

  // Writes `count` rows of a slice; `row_of(r)` is the matrix row that row r of the slice belongs to. A barrier must lie
  // between filling the slice and this, and another before it is filled again.
  template <class T, class RowOf>
  DEVICE void write(const T* slice, s32 count, RowOf row_of) const {
#pragma unroll 1
    for (s32 r = thread() / VECTORS; r < count; r += ROWS_AT_ONCE) {
      const s32 row = row_of(r);
      if (row >= rows || inside == 0) continue;
      const T* from = slice + r * PITCH + thread() % VECTORS * WIDTH;
      Vector other = {}, y;
      if (residual_by_vectors) {
        other = *reinterpret_cast<const Vector*>(address(e.residual, e.ld_residual, row));
      } else if (e.residual) {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i)
          if (i < inside) other.at[i] = address(e.residual, e.ld_residual, row)[i];
      }
      struct alignas(16) Four { T at[WIDTH]; };
      const Four sums = *reinterpret_cast<const Four*>(from);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) y.at[i] = columns[i].finish(e, row, sums.at[i], other.at[i]);
      Element* to = const_cast<Element*>(address(e.out, e.ld_out, row));
      if (out_by_vectors) {
        *reinterpret_cast<Vector*>(to) = y;
      } else {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i)
          if (i < inside) to[i] = y.at[i];
      }
    }
  }

 private:
  // THREADS neighbours share a slice: a block, or each of its warps one of its own.
  static DEVICE u32 thread() { return threadIdx.x % THREADS; }
  DEVICE const Element* address(const void* matrix, s32 ld, s32 row) const {
    return static_cast<const Element*>(matrix) + static_cast<s64>(row) * ld + first;
  }
  static DEVICE bool by_vectors(const void* matrix, s32 ld) {
    return ld % WIDTH == 0 && reinterpret_cast<u64>(matrix) % sizeof(Vector) == 0;
  }
};
