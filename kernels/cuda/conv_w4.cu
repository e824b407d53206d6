// Convolution with 4-bit weights, in the steps of int4.cuh; STEP is
//   ConvW4A8  8-bit activations; weights widened to 16 times their code         every architecture
//   ConvW4A4  4-bit activations; both sides widened, sums carry 256             where there is no 4-bit instruction
//   ConvS4    4-bit activations on the 4-bit instruction                        sm_75, 80, 86, 87, 89
// The partition is that of conv.cuh. With 4-bit activations a pixel is words of eight codes, every group from a word of
// its own on, and a piece of 16 bytes is 32 channels.
#include "conv.cuh"

KERNEL void __launch_bounds__(32 * WARPS_M * WARPS_N) conv_w4(const Conv a, const Epilogue e) {
  DYNAMIC_SHARED(shared);
  ConvTile<STEP>::run(a, e, shared);
}
