// conv_w4: convolution with 4-bit weights, in the steps of int4.cuh; STEP is
//   ConvW4A8  8-bit activations; weights widened to 16 times their code         every architecture
//   ConvW4A4  4-bit activations; both sides widened, sums carry 256             where there is no 4-bit instruction
//   ConvS4    4-bit activations on the 4-bit instruction                        sm_75, 80, 86, 87, 89
//
// conv.cuh draws how the image becomes a matrix, the block, and the ring of stages. As there, and unlike in the matrix
// products of int4_gemm.cuh, pixels are operand A and weights operand B. In the default tiles:
//
//               tile      a warp's outputs   stage: image            weights               stages
//   ConvW4A8    128 x 64  64 x 32            128 rows of 64 bytes    64 rows of 32 bytes   3 of 10 KiB
//   the others  64 x 64   32 x 32             64 rows of 32 bytes    64 rows of 32 bytes   4 of 4 KiB
//
// Rows of 64 bytes are swizzled (tile.cuh) and read by ldmatrix; rows of 32 bytes, eight words of eight codes, lie as they
// are and a lane loads 8 bytes. With 4-bit activations a pixel is words of eight codes, every group from a word of its own
// on, and a piece of 16 bytes is 32 channels.
//
// One step of K 64, lane 4g + t; low and high are the halves of a word as int4.cuh widens them:
//
//     a row of weights       │ word 0 │ word 1 │ word 2 │ word 3 │ word 4 │ word 5 │ word 6 │ word 7 │
//                            └───── t = 0 ─────┴───── t = 1 ─────┴───── t = 2 ─────┴───── t = 3 ─────┘
//
//     product i of two       A  pixel g           pixel g + 8           B  channel g, word v = 2t + i
//       ConvW4A8  a[0], a[2]: 4 bytes each   a[1], a[3]: the same   b[0] = low(v): k 32i + 4t .. 32i + 4t + 3
//                 of k as beside             of that pixel          b[1] = high(v): 16 further
//       ConvW4A4  a[0] = low, a[2] = high    a[1], a[3]: the same   b[0] = low(v), b[1] = high(v): codes 0..3 and 4..7
//                 of the pixel's word v      of that pixel          of that word
//     the one product        a[0], a[2]: words 2t,      a[1], a[3]: the same     b[0], b[1]: words 2t, 2t + 1
//       of ConvS4            2t + 1 of the pixel        of that pixel
//     C, in all of them      c[0], c[1]: channels 2t, 2t + 1 of pixel g          c[2], c[3]: of pixel g + 8
//
// So beside bytes the order of codes in a row is not that of k: the host puts into word 2t + i what ldmatrix gives lane t
// (`kernels.cuda.conv_packing.step_order`). Where both sides are words it is, and any order would do.
#include "conv.cuh"

KERNEL void __launch_bounds__(32 * WARPS_M * WARPS_N) conv_w4(const Conv a, const Epilogue e) {
  DYNAMIC_SHARED(shared);
  ConvTile<STEP>::run(a, e, shared);
}
