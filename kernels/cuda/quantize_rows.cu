// quantize_rows: activations to the codes that the matrix products with 4-bit weights take, with what belongs to a row.
//
//   codes      CODE_BITS=8: s8, row by row; CODE_BITS=4: words of 8 codes, K padded to 64 by zeroes (`pack_int4`)
//   row_scale  DYNAMIC=1: the largest magnitude of the row over 127 or 7, by which it is quantized symmetrically
//   row_sums   the sum of the codes of a row, for weights with zero points; null: not wanted
//
// DYNAMIC=0 divides by `scale` and adds `zero_point`, as `quantize` does; INPUT may then be s8 codes with scale 1, which
// only packs. The dynamic form multiplies by the inverse of the scale, as `kernels.reference.quantize_rows` does.
//
// A warp owns a row, a lane every 32nd piece of 8 neighbours, which is one word or 8 bytes:
//
//     lane     0        1              31       0
//            ├────────┼────────┼ ... ┼────────┼────────┼ ...
//     k      0        8        16    248      256      264

#include "epilogue.cuh"

constexpr int WIDTH = 8;
constexpr int STEP_K = 64;
constexpr s32 LOW = -(1 << (CODE_BITS - 1)), HIGH = (1 << (CODE_BITS - 1)) - 1;
static_assert(CODE_BITS == 8 || CODE_BITS == 4, "codes of 8 or 4 bits");
typedef OutputType<INPUT>::type In;

struct alignas(16) Piece { In at[WIDTH]; };
struct alignas(8) Codes { s8 at[WIDTH]; };

struct Row {
  const In* x;
  s32 columns;
  bool whole;  // rows start at multiples of 16 bytes

  DEVICE Piece load(s32 column) const {
    if (whole && column + WIDTH <= columns) return *reinterpret_cast<const Piece*>(x + column);
    Piece piece = {};
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
      if (column + i < columns) piece.at[i] = x[column + i];
    return piece;
  }
};

DEVICE float largest_magnitude(const Row& row) {
  float largest = 0.0f;
  for (s32 column = lane_id() * WIDTH; column < row.columns; column += 32 * WIDTH) {
    const Piece piece = row.load(column);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      const float y = to_float<INPUT>(piece.at[i]);
      largest = max(largest, y < 0.0f ? -y : y);
    }
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) largest = max(largest, shuffle_xor(largest, lanes));
  return largest;
}

// Eight codes as one word: byte j has code j in its low and code 4 + j in its high nibble.
DEVICE u32 word_of(const Codes& codes) {
  u32 word = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const u32 byte = (static_cast<u32>(codes.at[j]) & 15) | (static_cast<u32>(codes.at[j + 4]) & 15) << 4;
    word |= byte << (8 * j);
  }
  return word;
}

// `ld_codes` is bytes from row to row of the codes, a multiple of 8 with CODE_BITS=4; `ld_x` counts elements.
KERNEL void __launch_bounds__(32 * WARPS) quantize_rows(const In* x, u8* codes, float* row_scale, s32* row_sums,
                                                        float scale, s32 zero_point, s32 rows, s32 columns, s32 ld_x,
                                                        s32 ld_codes) {
  const s32 r = blockIdx.x * WARPS + threadIdx.x / 32;
  if (r >= rows) return;
  const In* first = x + static_cast<s64>(r) * ld_x;
  const bool whole = static_cast<u64>(ld_x) * sizeof(In) % 16 == 0 && reinterpret_cast<u64>(x) % 16 == 0;
  const Row row = {first, columns, whole};
  float inverse = 0.0f;
  if constexpr (DYNAMIC) {
    scale = divide(largest_magnitude(row), static_cast<float>(HIGH));
    if (scale > 0.0f) inverse = divide(1.0f, scale);
    if (lane_id() == 0) row_scale[r] = scale;
  }
  u8* out = codes + static_cast<s64>(r) * ld_codes;
  const bool out_whole = ld_codes % 8 == 0 && reinterpret_cast<u64>(codes) % 8 == 0;
  const s32 padded = CODE_BITS == 4 ? (columns + STEP_K - 1) / STEP_K * STEP_K : columns;
  s32 sum = 0;
  for (s32 column = lane_id() * WIDTH; column < padded; column += 32 * WIDTH) {
    const Piece piece = row.load(column);
    Codes found = {};
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      if (column + i >= columns) continue;
      const float y = to_float<INPUT>(piece.at[i]);
      const s64 steps = DYNAMIC ? rounded(multiply(y, inverse)) : rounded(divide(y, scale)) + zero_point;
      found.at[i] = static_cast<s8>(clamp(steps, LOW, HIGH));
      sum += found.at[i];
    }
    if constexpr (CODE_BITS == 4) {
      *reinterpret_cast<u32*>(out + column / 2) = word_of(found);
    } else if (out_whole && column + WIDTH <= columns) {
      *reinterpret_cast<Codes*>(out + column) = found;
    } else {
      for (int i = 0; i < WIDTH && column + i < columns; ++i) out[column + i] = static_cast<u8>(found.at[i]);
    }
  }
  if (!row_sums) return;
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
  if (lane_id() == 0) row_sums[r] = sum;
}
