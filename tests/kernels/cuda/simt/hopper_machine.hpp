// The CPU's version of kernels/cuda/src/hopper_machine.cuh. wgmma reads its operands either when it is issued or only
// when it is waited for: the first finds copies that were not waited for, the second stages that were freed too early.
#pragma once

#include "machine.hpp"

// What tests hand in for the driver's opaque map; see `emulated_tensor_map` in the test of gemm_s8_wgmma.
struct alignas(64) TensorMap {
  u64 address;
  s64 width, height, pitch;  // bytes of a row, rows, bytes from row to row
  u32 box_width, box_height;
  u64 unused[11];
};
static_assert(sizeof(TensorMap) == 128, "as large as the driver's");

namespace simt {

// Packed into the barrier's 8 bytes: arrivals expected, arrivals still missing, phase, bytes still missing.
struct MBarrier {
  u16 expected, missing;
  s32 state;  // phase in bit 0, bytes above it
};

inline MBarrier& mbarrier_at(u32 address) {
  return *reinterpret_cast<MBarrier*>(shared_pointer(address, 8, 8, "mbarrier"));
}

inline void mbarrier_advance(MBarrier& barrier) {
  if (barrier.missing != 0 || barrier.state >> 1 != 0) return;
  barrier.missing = barrier.expected;
  barrier.state ^= 1;
  for (Thread& thread : block.threads)
    if (thread.state == State::at_mbarrier) make_ready(thread);  // it looks again
}

struct Product {
  u64 a, b;
  s32* sums[128];
  bool accumulate, is_signed;
  unsigned columns;
};

inline std::vector<std::vector<std::vector<Product>>> products;  // by warpgroup, by group of the commit
inline const bool forgotten_at_start = (block.at_start = [] { products.clear(); }, true);

inline u8 operand(u64 descriptor, unsigned row, unsigned k) {
  const u32 start = static_cast<u32>(descriptor & 0x3fff) << 4, stride = static_cast<u32>(descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1) fail("wgmma: only the 128-byte swizzle is emulated, descriptor %llx", descriptor);
  u32 address = start + row / 8 * stride + row % 8 * 128 + k;
  address ^= (address >> 7 & 7) << 4;
  return *shared_pointer(address, 1, 1, "wgmma");
}

inline void compute(const Product& product) {
  static u8 a[64][32], b[256][32];
  for (unsigned k = 0; k < 32; ++k) {
    for (unsigned row = 0; row < 64; ++row) a[row][k] = operand(product.a, row, k);
    for (unsigned row = 0; row < product.columns; ++row) b[row][k] = operand(product.b, row, k);
  }
  for (unsigned lane = 0; lane < 128; ++lane)
    for (unsigned i = 0; i < product.columns / 2; ++i) {
      const unsigned row = lane / 32 * 16 + lane % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      s32 sum = product.accumulate ? product.sums[lane][i] : 0;
      for (unsigned k = 0; k < 32; ++k)
        sum += (product.is_signed ? static_cast<s8>(a[row][k]) : a[row][k]) * static_cast<s8>(b[column][k]);
      product.sums[lane][i] = sum;
    }
}

struct ProductLane {
  u64 a, b;
  s32* sums;
  bool accumulate, is_signed;
  unsigned columns;
};

inline std::vector<std::vector<Product>>& queue_of_group() {
  const unsigned group = current->rank / 128;
  if (products.size() <= group) products.resize(group + 1);
  if (products[group].empty()) products[group].resize(1);
  return products[group];
}

inline void run_product(const ProductLane& lane) {
  Nothing out;
  collective<128>("wgmma", lane, out, +[](const ProductLane* in, Nothing*) {
    Product product{in[0].a, in[0].b, {}, in[0].accumulate, in[0].is_signed, in[0].columns};
    for (unsigned i = 0; i < 128; ++i) {
      if (in[i].a != in[0].a || in[i].b != in[0].b || in[i].accumulate != in[0].accumulate)
        fail("wgmma: the threads of a warpgroup name different operands");
      product.sums[i] = in[i].sums;
    }
    auto& queue = queue_of_group();
    bool alone = true;  // products of one warpgroup come in order
    for (auto& group : queue) alone = alone && group.empty();
    if (alone && random_bits() & 64) compute(product);
    else queue.back().push_back(product);
  });
}

inline void wait_for_products(size_t pending) {
  auto& queue = queue_of_group();
  while (queue.size() > pending + 1) {
    for (const Product& product : queue.front()) compute(product);
    queue.erase(queue.begin());
  }
}

}  // namespace simt

DEVICE void mbarrier_init(u32 barrier, u32 arrivals) {
  simt::mbarrier_at(barrier) = {static_cast<u16>(arrivals), static_cast<u16>(arrivals), 0};
}
DEVICE void fence_mbarrier_init() {}
DEVICE void mbarrier_arrive(u32 address) {
  simt::MBarrier& barrier = simt::mbarrier_at(address);
  if (barrier.missing == 0) simt::fail("an arrival too many at an mbarrier");
  --barrier.missing;
  simt::mbarrier_advance(barrier);
}
DEVICE void mbarrier_arrive_expect(u32 address, u32 bytes) {
  simt::mbarrier_at(address).state += static_cast<s32>(bytes) * 2;
  mbarrier_arrive(address);
}
DEVICE void mbarrier_wait(u32 address, u32 parity) {
  while ((simt::mbarrier_at(address).state & 1) == static_cast<s32>(parity))
    simt::suspend(simt::State::at_mbarrier, "an mbarrier");
}

DEVICE void tma_load_2d(u32 destination, const TensorMap& map, s32 x, s32 y, u32 barrier) {
  const u32 bytes = map.box_width * map.box_height;
  if (map.address % 16 || map.pitch % 16) simt::fail("tma: addresses and pitches are multiples of 16 bytes");
  if (destination % 1024) simt::fail("tma: a swizzled tile starts at a multiple of 1024 bytes");
  memset(simt::shared_pointer(destination, bytes, 128, "tma"), simt::POISON, bytes);
  const TensorMap from = map;
  simt::block.engine.push_back([=] {
    for (u32 r = 0; r < from.box_height; ++r)
      for (u32 c = 0; c < from.box_width; ++c) {
        u32 to = destination + r * from.box_width + c;
        to ^= (to >> 7 & 7) << 4;
        const bool inside = y + static_cast<s64>(r) < from.height && x + static_cast<s64>(c) < from.width;
        *simt::shared_pointer(to, 1, 1, "tma") =
            inside ? reinterpret_cast<const u8*>(from.address)[(y + r) * from.pitch + x + c] : 0;
      }
    simt::MBarrier& full = simt::mbarrier_at(barrier);
    full.state -= static_cast<s32>(bytes) * 2;
    simt::mbarrier_advance(full);
  });
}
DEVICE void prefetch_map(const TensorMap&) {}

DEVICE void wgmma_fence() {}
DEVICE void wgmma_commit() {
  simt::Nothing in, out;
  simt::collective<128>("wgmma_commit", in, out, +[](const simt::Nothing*, simt::Nothing*) {
    simt::queue_of_group().emplace_back();
  });
}
template <int PENDING>
DEVICE void wgmma_wait() {
  simt::Nothing in, out;
  simt::collective<128>("wgmma_wait", in, out, +[](const simt::Nothing*, simt::Nothing*) {
    simt::wait_for_products(PENDING);
  });
}
template <int COUNT>
DEVICE void settle(s32 (&c)[COUNT]) {
  asm volatile("" : : "r"(&c) : "memory");
}
template <int COUNT>
DEVICE void wgmma_s8(s32 (&c)[COUNT], u64 a, u64 b, bool accumulate) {
  simt::run_product({a, b, c, accumulate, true, 2 * COUNT});
}
template <int COUNT>
DEVICE void wgmma_u8s8(s32 (&c)[COUNT], u64 a, u64 b, bool accumulate) {
  simt::run_product({a, b, c, accumulate, false, 2 * COUNT});
}
template <int REGISTERS>
DEVICE void give_registers() {}
template <int REGISTERS>
DEVICE void take_registers() {}
