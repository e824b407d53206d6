// Tiles of 8-bit operands in shared memory: how they are laid out, filled and read.
//
// A tile is ROWS x BYTES, BYTES along K (64 or more). It is kept as 16-byte chunks, the unit of cp.async and ldmatrix,
// and chunk c of row r lies at place c ^ phase(r) of its row:
//
//     BYTES = 64, 4 chunks a row            BYTES = 128, 8 chunks a row
//     row 0 | 0 1 2 3 |                     row 0 | 0 1 2 3 4 5 6 7 |
//     row 1 | 0 1 2 3 |                     row 1 | 1 0 3 2 5 4 7 6 |
//     row 2 | 1 0 3 2 |                     row 2 | 2 3 0 1 6 7 4 5 |
//     row 3 | 1 0 3 2 |                       ...
//     row 4 | 2 3 0 1 | ...                 row 7 | 7 6 5 4 3 2 1 0 |
//
// The 32 banks are 8 chunks wide. ldmatrix reads one chunk number of 8 neighbouring rows at once, and in these layouts
// those 8 chunks fall on 8 different places of the banks; so do the 8 chunks that 8 neighbouring lanes write.
#pragma once

#include "primitives.cuh"

constexpr int CHUNK = 16;

template <int BYTES>
DEVICE u32 chunk_place(u32 row, u32 chunk) {
  constexpr u32 CHUNKS = BYTES / CHUNK;
  static_assert(CHUNKS >= 2 && (CHUNKS & (CHUNKS - 1)) == 0, "rows of 32, 64, 128, 256 ... bytes");
  if constexpr (CHUNKS == 2) return row * BYTES + chunk * CHUNK;  // 4-bit rows, not for ldmatrix
  if constexpr (CHUNKS >= 8) return row * BYTES + ((chunk ^ (row & 7)) * CHUNK);
  return row * BYTES + ((chunk ^ (row / 2 & 3)) * CHUNK);
}

// Sixteen bytes of a row, of which the first `valid` exist. ALIGN is what the address is known to be a multiple of:
// 16 or 4 are copied asynchronously, 1 byte by byte through registers.
template <int ALIGN>
DEVICE void copy_chunk(u32 destination, const u8* source, s32 valid) {
  valid = valid < 0 ? 0 : valid > CHUNK ? CHUNK : valid;
  if constexpr (ALIGN == 16) {
    cp_async_16(destination, source, valid);
  } else if constexpr (ALIGN == 4) {
#pragma unroll
    for (int i = 0; i < CHUNK; i += 4)
      cp_async_4(destination + i, valid > i ? source + i : source, valid > i ? min(valid - i, 4) : 0);
  } else {
    u32 words[4] = {};
#pragma unroll
    for (int i = 0; i < CHUNK; ++i)
      if (i < valid) words[i / 4] |= static_cast<u32>(source[i]) << (i % 4 * 8);
    store_shared_16(destination, {words[0], words[1], words[2], words[3]});
  }
}

// Fills ROWS x BYTES tiles from a row-major matrix of `rows` x `bytes` with `ld` bytes from row to row. Outside the
// matrix the tile is zero. Thread i carries chunk i % CHUNKS of rows i / CHUNKS, + STEP, + 2 STEP ...
template <int ROWS, int BYTES, int THREADS, int ALIGN>
struct TileLoader {
  static constexpr int CHUNKS = BYTES / CHUNK;
  static constexpr int STEP = THREADS / CHUNKS;
  static constexpr int COPIES = (ROWS + STEP - 1) / STEP;
  static_assert(THREADS % CHUNKS == 0, "a thread keeps its chunk column");

  const u8* source;  // this thread's chunk of the tile's first row, at the start of K
  s64 ld;
  s32 bytes_left;  // from this thread's chunk of the next tile to the end of a row
  s32 rows_left;   // from this thread's first row to the end of the matrix

  DEVICE TileLoader(const u8* matrix, s64 ld, s32 row0, s32 rows, s32 first_byte, s32 bytes)
      : ld(ld), bytes_left(bytes - first_byte - thread_chunk() * CHUNK), rows_left(rows - row0 - thread_row()) {
    source = matrix + (row0 + thread_row()) * ld + first_byte + thread_chunk() * CHUNK;
  }

  // Copies the next tile along K to shared address `tile`.
  DEVICE void next(u32 tile) {
#pragma unroll
    for (int i = 0; i < COPIES; ++i) {
      const s32 row = thread_row() + i * STEP;
      if (ROWS % STEP != 0 && row >= ROWS) break;
      const bool inside = i * STEP < rows_left && bytes_left > 0;
      copy_chunk<ALIGN>(tile + chunk_place<BYTES>(row, thread_chunk()), source + i * STEP * ld, inside ? bytes_left : 0);
    }
    source += BYTES;
    bytes_left -= BYTES;
  }

 private:
  static DEVICE s32 thread_row() { return threadIdx.x / CHUNKS; }
  static DEVICE s32 thread_chunk() { return threadIdx.x % CHUNKS; }
};

// Registers of A for rows row0 .. row0+15 and K bytes 32 step .. 32 step + 31 of a tile. The four matrices of ldmatrix
// are a[0] (rows 0-7, first half of K), a[1] (rows 8-15), a[2], a[3] (second half).
template <int BYTES>
DEVICE void load_a(u32 (&a)[4], u32 tile, u32 row0, u32 step) {
  const u32 lane = lane_id();
  ldmatrix_x4(a, tile + chunk_place<BYTES>(row0 + lane % 16, 2 * step + lane / 16));
}

// Registers of B for columns (rows of the tile) row0 .. row0+15: b[0], b[1] of the first eight, b[2], b[3] of the others.
template <int BYTES>
DEVICE void load_b_pair(u32 (&b)[4], u32 tile, u32 row0, u32 step) {
  const u32 lane = lane_id();
  ldmatrix_x4(b, tile + chunk_place<BYTES>(row0 + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
}

// Order of the output tiles: groups of GROUP rows of tiles are walked column by column, so that blocks that run at the
// same time share rows of A and columns of B in the L2 cache.
//
//     tiles_n →
//     0  2  4  6      (GROUP = 2)
//     1  3  5  7
//     8 10 12 14
//     9 11 13 15
template <int GROUP>
DEVICE void tile_of_block(s32 block, s32 tiles_m, s32 tiles_n, s32& tile_m, s32& tile_n) {
  const s32 per_group = GROUP * tiles_n;
  const s32 first = block / per_group * GROUP;
  const s32 height = min(tiles_m - first, GROUP);
  tile_m = first + block % per_group % height;
  tile_n = block % per_group / height;
}
