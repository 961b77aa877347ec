"""One program a tile of tokens and a head's keys or values: project, round, clamp, pack, store."""

from __future__ import annotations

import triton
import triton.language as tl


def _metadata(grid, kernel, args):
    x = args["X"]
    tokens = x.shape[0] * x.shape[2]
    return {
        "name": "spectral_compress",
        "bytes": x.numel() * x.element_size() + tokens * args["token_bytes"],
        "flops32": 2 * tokens * args["HK"] * args["D"] * args["COUNT"],
    }


@triton.jit
def _planes(
    x_at,
    valid,
    ENCODE,
    OFFSET,
    TOP,
    SHIFT,
    columns,
    inside,
    COUNT: tl.constexpr,
    D: tl.constexpr,
    STEP: tl.constexpr,
    T: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Planes int32 `[T, PADDED]` of some columns (not masked to their widths); x_at: pointers `[T]` to tokens.

    Half-precision tokens are exact in tf32, so that two products, with the matrix's leading 11 bits and with the rest, are
    as exact as one in float32; float32 tokens take three (Ootomo and Yokota 2022, arXiv 2203.03341).
    """
    y = tl.zeros((T, PADDED), tl.float32)
    for start in range(0, D, STEP):
        d = start + tl.arange(0, STEP)
        x = tl.load(x_at[:, None] + d[None, :], mask=valid[:, None], other=0.0)
        matrix = tl.load(ENCODE + d[:, None] * COUNT + columns[None, :], mask=inside[None, :], other=0.0)
        if x.dtype == tl.float32:
            y = tl.dot(x, matrix, y, input_precision="tf32x3")
        else:
            leading = (matrix.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            y = tl.dot(x.to(tl.float32), leading, y, input_precision="tf32")
            y = tl.dot(x.to(tl.float32), matrix - leading, y, input_precision="tf32")
    y += tl.load(OFFSET + columns, mask=inside, other=0.0)[None, :]
    top = tl.load(TOP + columns, mask=inside, other=0.0)
    codes = tl.minimum(tl.maximum(tl.floor(y + 0.5), 0.0), top[None, :]).to(tl.int32)
    return codes >> tl.load(SHIFT + columns, mask=inside, other=0)[None, :]


@triton.jit
def _write_band(
    x_at,
    valid,
    rows,
    units,
    matrices,
    start,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    PADDED: tl.constexpr,
    COUNT: tl.constexpr,
    D: tl.constexpr,
    STEP: tl.constexpr,
    T: tl.constexpr,
):
    """Pack a band of `WIDTH`-bit planes, whose first column is `start`, into `units` units of type UNIT at `rows: [T]`."""
    unit = tl.arange(0, PADDED)
    inside = unit < units
    encode, offset, top, shift = matrices
    packed = tl.zeros((T, PADDED), tl.int32)
    for j in tl.static_range(UNIT.primitive_bitwidth // WIDTH):
        columns = start + j * PADDED + unit
        planes = _planes(x_at, valid, encode, offset, top, shift, columns, inside, COUNT, D, STEP, T, PADDED)
        packed = packed | ((planes & (2**WIDTH - 1)) << (j * WIDTH))
    at = rows.to(tl.pointer_type(UNIT))[:, None] + unit[None, :]
    tl.store(at, packed.to(UNIT), mask=valid[:, None] & inside[None, :])


@triton.jit(launch_metadata=_metadata, do_not_specialize=["token_bytes"])
def compress_kernel(
    X,
    STORAGE,
    PAGES,
    HEADS,
    ENCODE,
    OFFSET,
    TOP,
    SHIFT,
    tokens,
    token_bytes,
    HK: tl.constexpr,
    D: tl.constexpr,
    COUNT: tl.constexpr,
    B4: tl.constexpr,
    B2: tl.constexpr,
    B1: tl.constexpr,
    VALUES: tl.constexpr,
    STEP: tl.constexpr,
    T: tl.constexpr,
):
    """Grid (N·Hk, tokens / T). X: `[N, Hk, tokens, D]`, keys, or with VALUES values. COUNT: plane columns."""
    nh = tl.program_id(0).to(tl.int64)
    n = nh // HK
    h = nh % HK
    t = tl.program_id(1) * T + tl.arange(0, T)
    valid = t < tokens
    x_at = X + (nh * tokens + t) * D
    table = HEADS + h * 9
    rows = STORAGE + tl.load(PAGES + n) + tl.load(table) + (128 - tokens + t) * tl.load(table + 1)
    first = 2
    if VALUES:
        first = 5
        rows += tl.load(table + 2) + tl.load(table + 3) + tl.load(table + 4)
    matrices = (ENCODE + h * D * COUNT, OFFSET + h * COUNT, TOP + h * COUNT, SHIFT + h * COUNT)
    n4 = tl.load(table + first)
    n2 = tl.load(table + first + 1)
    if B4 > 0:
        _write_band(x_at, valid, rows, n4 // 2, matrices, 0, 4, tl.uint16, B4, COUNT, D, STEP, T)
    if B2 > 0:
        _write_band(x_at, valid, rows + n4, n2, matrices, 4 * B4, 2, tl.uint8, B2, COUNT, D, STEP, T)
    if B1 > 0:
        n1 = tl.load(table + first + 2)
        start = 4 * B4 + 4 * B2
        _write_band(x_at, valid, rows + n4 + n2, n1, matrices, start, 1, tl.uint8, B1, COUNT, D, STEP, T)


@triton.jit
def index_kernel(
    X,
    STORAGE,
    PAGES,
    HEADS,
    ENCODE,
    OFFSET,
    TOP,
    SHIFT,
    tokens,
    HK: tl.constexpr,
    D: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
    STEP: tl.constexpr,
    T: tl.constexpr,
):
    """Grid (N·Hk, tokens / T): the index's codes, two a byte, token after token. HALF: a power of two, at least RANK / 2."""
    nh = tl.program_id(0).to(tl.int64)
    h = nh % HK
    t = tl.program_id(1) * T + tl.arange(0, T)
    valid = t < tokens
    x_at = X + (nh * tokens + t) * D
    byte = tl.arange(0, HALF)
    inside = byte < RANK // 2
    packed = tl.zeros((T, HALF), tl.int32)
    for j in tl.static_range(2):
        planes = _planes(
            x_at,
            valid,
            ENCODE + h * D * RANK,
            OFFSET + h * RANK,
            TOP + h * RANK,
            SHIFT + h * RANK,
            j * (RANK // 2) + byte,
            inside,
            RANK,
            D,
            STEP,
            T,
            HALF,
        )
        packed = packed | ((planes & 15) << (4 * j))
    index = STORAGE + tl.load(PAGES + nh // HK) + tl.load(HEADS + h * 9 + 8)
    at = index + (128 - tokens + t)[:, None] * (RANK // 2) + byte[None, :]
    tl.store(at, packed.to(tl.uint8), mask=valid[:, None] & inside[None, :])
