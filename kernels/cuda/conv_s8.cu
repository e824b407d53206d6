// INT8 convolution: 8-bit codes on both sides, 32-bit sums, the fused epilogue. See conv.cuh for the partition.
#include "conv.cuh"

KERNEL void __launch_bounds__(32 * WARPS_M * WARPS_N) conv_s8(const Conv a, const Epilogue e) {
  DYNAMIC_SHARED(shared);
  ConvTile<ConvS8>::run(a, e, shared);
}
