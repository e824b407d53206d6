// conv_s8: INT8 convolution, 8-bit codes on both sides into exact 32-bit sums, then the fused epilogue.
//
// conv.cuh draws how the image becomes a matrix, the block, and the ring of stages; the bracketed figures there are this
// kernel's default tile. A stage is 128 rows of 64 bytes of image and 64 rows of 64 bytes of weights, 12 KiB, three of
// them. Both lie in chunks of 16 bytes in the places that tile.cuh draws for BYTES = 64. Weights come from
// `kernels.cuda.conv_packing.pack_taps`: a channel's taps one behind the other, each padded as the image's pieces are, zero
// up to a whole step.
//
// One step of K 64 is two products, h = 0 and 1, of 32. What a lane 4g + t holds of one of its warp's tiles of 16 pixels by
// 8 channels, where ldmatrix puts it:
//
//     a row of 64 bytes       │ chunk 0 │ chunk 1 │ chunk 2 │ chunk 3 │      the same k in pixels and in weights
//                             └────── h = 0 ──────┴────── h = 1 ──────┘
//     bytes 4t .. 4t + 3 of        chunk 2h        chunk 2h + 1
//       A  pixel g                   a[0]              a[2]
//          pixel g + 8               a[1]              a[3]
//       B  channel g                 b[0]              b[1]               one mma.m16n8k32.s8
//       C  pixel g             c[0], c[1]: channels 2t, 2t + 1            pixel g + 8   c[2], c[3]
//
// With the default tile a warp has 4 x 4 such tiles: 64 sums a thread. On sm_75 a product is four of m8n8k16 with the same
// registers (primitives.cuh).
#include "conv.cuh"

KERNEL void __launch_bounds__(32 * WARPS_M * WARPS_N) conv_s8(const Conv a, const Epilogue e) {
  DYNAMIC_SHARED(shared);
  ConvTile<ConvS8>::run(a, e, shared);
}
