// Split-K: several thread blocks share one output tile, each with a slice of K, when the tiles alone would leave
// multiprocessors idle. No order of arrival changes the result: every block stores its partial sums, and the one that
// arrives last adds all of them slice by slice.
//
//   workspace   [tile][slice][value][thread]   4 bytes each: neighbours in a warp store neighbouring words
//   arrivals    [tile]                         0 before and after every launch, so a graph can replay it
#pragma once

#include "primitives.cuh"

// Replaces each thread's `values` by the sum over all slices and returns true in the last block to arrive, where the
// output is to be written; returns false elsewhere. `flag` is one word of shared memory. All THREADS threads call it.
template <int TILES, int THREADS, class Value>
DEVICE bool gather_slices(Value (&values)[TILES][4], Value* workspace, u32* arrivals, s32 tile, s32 slice, s32 slices,
                          u32* flag) {
  if (slices == 1) return true;
  constexpr int VALUES = 4 * TILES;
  const s64 stride = static_cast<s64>(VALUES) * THREADS;
  Value* tile_base = workspace + static_cast<s64>(tile) * slices * stride + threadIdx.x;
  Value* mine = tile_base + slice * stride;
#pragma unroll
  for (int i = 0; i < VALUES; ++i) mine[i * THREADS] = values[i / 4][i % 4];
  memory_fence();
  __syncthreads();
  if (threadIdx.x == 0) *flag = atomic_add(arrivals + tile, 1u);
  __syncthreads();
  if (*flag != static_cast<u32>(slices - 1)) return false;
  memory_fence();
#pragma unroll
  for (int i = 0; i < VALUES; ++i) {
    Value sum = 0;
    for (s32 s = 0; s < slices; ++s) sum += load_from_l2(tile_base + s * stride + i * THREADS);
    values[i / 4][i % 4] = sum;
  }
  if (threadIdx.x == 0) arrivals[tile] = 0;
  return true;
}
