"""Matrix products written in Triton: int8 by int8, and halves by 4-bit weights, each with its scaling fused behind it.

Importing this file needs `triton`, which a torch built for CUDA brings along; `cuda_triton` imports it when asked.
Both kernels give one program one BLOCK_M × BLOCK_N tile of the output and walk along K:

                   N                      `scaled_int8`: x (M, K) and w (N, K), both int8 with K contiguous, so both
            ┌──────┬──────┬ ─            tiles of a step are loaded along their rows; the sums are int32 and exact.
            │ BLOCK_K x   │
       K    │ BLOCK_N     │ w            `widened_int4`: w is bytes (K / 2, N). A step of STEP k is STEP / 2 rows of
            ├──────┼──────┼ ─            bytes; the low nibbles of a row are k = r, the high ones k = STEP / 2 + r of
       K    │      │      │              the same step, so neither half has to be interleaved with the other: they are
     ┌──────┼──────┼──────┼ ─            two products. A step never crosses a group, and the float sums of a step are
  M  │ x    │ tile │      │              scaled by the group's scale before they join the total.
     └──────┴──────┴──────┴ ─

Programs are numbered down GROUP_M tiles of rows before the next column, so that neighbours share weights in the cache.
Rows and columns past the end are read again from the start and not stored; K is masked where a step does not divide it.
"""

# Triton's compiler reads these functions as text: their annotations are its own, and it traces no Python types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def tile_of(m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """First row and first column of this program's tile."""
    tiles_m = (m + BLOCK_M - 1) // BLOCK_M
    tiles_n = (n + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    in_group = GROUP_M * tiles_n
    first = program // in_group * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    row = first + program % in_group % height
    column = program % in_group // height
    return row * BLOCK_M, column * BLOCK_N


@triton.jit
def store_halves(
    y, out, offset, row, column, m, n, HAS_OFFSET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """A tile of scaled sums plus the bias, as half precision into out (M, N)."""
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    if HAS_OFFSET:
        y += tl.load(offset + columns, mask=columns < n, other=0.0)[None, :]
    inside = (rows < m)[:, None] & (columns < n)[None, :]
    tl.store(out + rows.to(tl.int64)[:, None] * n + columns[None, :], y.to(tl.float16), mask=inside)


@triton.jit
def scaled_int8(
    x, w, out, scale, offset, m, n, k,
    HAS_OFFSET: tl.constexpr, DIVIDES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """out (M, N) = x (M, K) · w (N, K)ᵀ · scale (N) + offset (N). DIVIDES: K is a multiple of BLOCK_K."""
    row, column = tile_of(m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = ((row + tl.arange(0, BLOCK_M)) % m).to(tl.int64)
    columns = ((column + tl.arange(0, BLOCK_N)) % n).to(tl.int64)
    depth = tl.arange(0, BLOCK_K)
    x_at = x + rows[:, None] * k + depth[None, :]
    w_at = w + columns[None, :] * k + depth[:, None]
    sums = tl.full((BLOCK_M, BLOCK_N), 0, tl.int32)
    for start in range(0, k, BLOCK_K):
        if DIVIDES:
            a = tl.load(x_at)
            b = tl.load(w_at)
        else:
            a = tl.load(x_at, mask=(depth < k - start)[None, :], other=0)
            b = tl.load(w_at, mask=(depth < k - start)[:, None], other=0)
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
        x_at += BLOCK_K
        w_at += BLOCK_K
    y = sums.to(tl.float32) * tl.load(scale + columns)[None, :]
    store_halves(y, out, offset, row, column, m, n, HAS_OFFSET, BLOCK_M, BLOCK_N)


@triton.jit
def widened_int4(
    x, w, out, scale, offset, m, n, k,
    HAS_OFFSET: tl.constexpr, DIVIDES: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """out (M, N) = x (M, K) · code · scale + offset (N), codes in bytes w (steps · STEP / 2, N), biased by 8.

    `scale` is (groups, N), a row for every GROUP k; with GROUP 0 it is (N,). DIVIDES: K is a multiple of STEP.
    """
    HALF: tl.constexpr = STEP // 2
    row, column = tile_of(m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = ((row + tl.arange(0, BLOCK_M)) % m).to(tl.int64)
    columns = ((column + tl.arange(0, BLOCK_N)) % n).to(tl.int64)
    depth = tl.arange(0, HALF)
    x_at = x + rows[:, None] * k + depth[None, :]
    w_at = w + depth.to(tl.int64)[:, None] * n + columns[None, :]
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for start in range(0, k, STEP):
        if DIVIDES:
            low_x = tl.load(x_at)
            high_x = tl.load(x_at + HALF)
        else:
            low_x = tl.load(x_at, mask=(depth < k - start)[None, :], other=0.0)
            high_x = tl.load(x_at + HALF, mask=(depth < k - start - HALF)[None, :], other=0.0)
        pairs = tl.load(w_at)
        low = ((pairs & 15).to(tl.int8) - 8).to(tl.float16)
        high = ((pairs >> 4).to(tl.int8) - 8).to(tl.float16)
        if GROUP:
            sums = tl.dot(high_x, high, tl.dot(low_x, low))
            total += sums * tl.load(scale + start // GROUP * n + columns)[None, :]
        else:
            total = tl.dot(high_x, high, tl.dot(low_x, low, total))
        x_at += STEP
        w_at += HALF * n
    if not GROUP:
        total *= tl.load(scale + columns)[None, :]
    store_halves(total, out, offset, row, column, m, n, HAS_OFFSET, BLOCK_M, BLOCK_N)
