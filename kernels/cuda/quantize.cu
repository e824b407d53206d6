// quantize, dequantize, requantize: where a tensor changes its number format. (rows, columns) matrices with the channels
// in the columns (NHWC pixels by channels, tokens by features), INPUT and OUTPUT as in epilogue.cuh.
//
//   quantize      codes = clamp(rint(x / scale[c]) + zero_point[c])            float in, codes out
//   dequantize    y = (code - zero_point[c]) * scale[c]                        codes in, float out
//   requantize    the epilogue of the matrix products on a matrix of its own   s32 sums or codes in, anything out
//
// With `per_channel` 0 the first scale and zero point serve every column. The division is an IEEE one, as ONNX defines
// QuantizeLinear; these kernels wait for memory, not for it.
//
// Work is cut into runs of WIDTH = 4 neighbouring columns. A block takes ITEMS * BLOCK_THREADS runs, one behind the other in
// memory, and a thread ITEMS of them, BLOCK_THREADS apart, so that a warp reads and writes whole lines and has all its reads
// under way before it needs the first:
//
//        run      0      1           T-1    T               2 T
//     thread      0      1    ...    T-1  │ 0      1   ...   │ 0     ...      │ ...
//
// Where rows do not begin on a multiple of 4 elements, or a run is cut by the last column, elements go one by one.

#include "epilogue.cuh"

constexpr int WIDTH = 4;
typedef OutputType<INPUT>::type In;
typedef OutputType<OUTPUT>::type Out;

template <class T>
struct alignas(WIDTH * sizeof(T)) Run {
  T at[WIDTH];
};

template <class T>
DEVICE bool in_runs(const T* matrix, s32 ld) {
  return ld % WIDTH == 0 && reinterpret_cast<u64>(matrix) % sizeof(Run<T>) == 0;
}

template <class T>
DEVICE Run<T> load_run(const T* from, s32 inside, bool whole) {
  if (whole) return *reinterpret_cast<const Run<T>*>(from);
  Run<T> run = {};
  for (int i = 0; i < WIDTH; ++i)
    if (i < inside) run.at[i] = from[i];
  return run;
}

template <class T>
DEVICE void store_run(T* to, const Run<T>& run, s32 inside, bool whole) {
  if (whole) {
    *reinterpret_cast<Run<T>*>(to) = run;
    return;
  }
  for (int i = 0; i < WIDTH; ++i)
    if (i < inside) to[i] = run.at[i];
}

// Calls one(row, column, element) for every element and writes what it returns.
template <class One>
DEVICE void for_each(const In* x, Out* y, s32 rows, s32 columns, s32 ld_x, s32 ld_y, One one) {
  const u32 runs_in_row = (columns + WIDTH - 1) / WIDTH, runs = runs_in_row * rows;
  const bool whole_in = in_runs(x, ld_x), whole_out = in_runs(y, ld_y);
  const u32 first = blockIdx.x * (BLOCK_THREADS * ITEMS) + threadIdx.x;
  Run<In> in[ITEMS];
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    const u32 run = first + item * BLOCK_THREADS;
    if (run >= runs) break;
    const s32 row = run / runs_in_row, column = run % runs_in_row * WIDTH, inside = columns - column;
    in[item] = load_run(x + static_cast<s64>(row) * ld_x + column, inside, whole_in && inside >= WIDTH);
  }
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    const u32 run = first + item * BLOCK_THREADS;
    if (run >= runs) break;
    const s32 row = run / runs_in_row, column = run % runs_in_row * WIDTH, inside = columns - column;
    Run<Out> out;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) out.at[i] = i < inside ? one(row, column + i, in[item].at[i]) : Out(0);
    store_run(y + static_cast<s64>(row) * ld_y + column, out, inside, whole_out && inside >= WIDTH);
  }
}

#if MODE == 0
KERNEL void __launch_bounds__(BLOCK_THREADS) quantize(const In* x, Out* codes, const float* scale, const s32* zero_point,
                                                s32 rows, s32 columns, s32 ld_x, s32 ld_codes, s32 per_channel,
                                                s32 low, s32 high) {
  for_each(x, codes, rows, columns, ld_x, ld_codes, [&](s32, s32 column, In value) {
    const s32 c = per_channel ? column : 0;
    const s64 steps = rounded(divide(to_float<INPUT>(value), scale[c]));
    return static_cast<Out>(clamp(steps + zero_point[c], low, high));
  });
}
#elif MODE == 1
KERNEL void __launch_bounds__(BLOCK_THREADS) dequantize(const In* codes, Out* y, const float* scale, const s32* zero_point,
                                                  s32 rows, s32 columns, s32 ld_codes, s32 ld_y, s32 per_channel) {
  for_each(codes, y, rows, columns, ld_codes, ld_y, [&](s32, s32 column, In code) {
    const s32 c = per_channel ? column : 0;
    return from_float<OUTPUT>(multiply(static_cast<float>(static_cast<s32>(code) - zero_point[c]), scale[c]));
  });
}
#else
KERNEL void __launch_bounds__(BLOCK_THREADS) requantize(const In* x, const Epilogue e, s32 rows, s32 columns, s32 ld_x,
                                                  s32 input_zero_point) {
  for_each(x, static_cast<Out*>(e.out), rows, columns, ld_x, e.ld_out, [&](s32 row, s32 column, In value) {
    return finish<OUTPUT>(e, row, column, static_cast<s32>(value) - input_zero_point);
  });
}
#endif
