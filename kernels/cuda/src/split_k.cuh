// Split-K for sums that must not depend on who comes first: floats, or integers beside them.
//
// Several blocks share one output tile, each with a slice of K. Every block stores its sums, and the one that arrives
// last adds all slices in their order, so the result is the same in every run.
//
//   partial     [tile][slice][value][thread]   4 bytes each: neighbours in a warp store neighbouring words
//   arrivals    [tile]                         0 before and after every launch
#pragma once

#include "primitives.cuh"

DEVICE s32 from_l2(const s32* address) { return load_from_l2(address); }
DEVICE float from_l2(const float* address) {
  return bits_to_float(static_cast<u32>(load_from_l2(reinterpret_cast<const s32*>(address))));
}

// Replaces each thread's `values` by the sum over all slices and returns true in the last block to arrive; false
// elsewhere. `flag` is one word of shared memory that nobody uses. All THREADS threads call it.
template <int TILES, int THREADS, class Value>
DEVICE bool gather_slices(Value (&values)[TILES][4], Value* partial, u32* arrivals, s32 tile, s32 slice, s32 slices,
                          u32* flag) {
  if (slices == 1) return true;
  constexpr s64 PER_SLICE = static_cast<s64>(4 * TILES) * THREADS;
  Value* first = partial + static_cast<s64>(tile) * slices * PER_SLICE + threadIdx.x;
#pragma unroll
  for (int i = 0; i < 4 * TILES; ++i) first[slice * PER_SLICE + i * THREADS] = values[i / 4][i % 4];
  fence_device();
  __syncthreads();
  if (threadIdx.x == 0) *flag = count_in_memory(arrivals + tile, slices);
  __syncthreads();
  if (!*flag) return false;
  fence_device();
#pragma unroll
  for (int i = 0; i < 4 * TILES; ++i) {
    Value sum = 0;
    for (s32 s = 0; s < slices; ++s) sum += from_l2(first + s * PER_SLICE + i * THREADS);
    values[i / 4][i % 4] = sum;
  }
  __syncthreads();  // the flag's place is free again
  return true;
}

// The same for sums that lie in shared memory: ROWS x COLUMNS floats, PITCH from row to row, complete behind a barrier.
//
//   partial     [tile][slice][row][column]
template <int ROWS, int COLUMNS, int PITCH, int THREADS>
DEVICE bool gather_shared_slices(float* sums, float* partial, u32* arrivals, s32 tile, s32 slice, s32 slices, u32* flag) {
  constexpr s64 PER_SLICE = ROWS * COLUMNS;
  float* all = partial + static_cast<s64>(tile) * slices * PER_SLICE;
  for (int i = threadIdx.x; i < PER_SLICE; i += THREADS) {
    all[slice * PER_SLICE + i] = sums[i / COLUMNS * PITCH + i % COLUMNS];
  }
  fence_device();
  __syncthreads();
  if (threadIdx.x == 0) *flag = count_in_memory(arrivals + tile, slices);
  __syncthreads();
  if (!*flag) return false;
  fence_device();
  for (int i = threadIdx.x; i < PER_SLICE; i += THREADS) {
    float sum = 0.0f;
    for (s32 s = 0; s < slices; ++s) sum = add(sum, from_l2(all + s * PER_SLICE + i));
    sums[i / COLUMNS * PITCH + i % COLUMNS] = sum;
  }
  __syncthreads();
  return true;
}
