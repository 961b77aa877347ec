"""One program a head and kind: project, round, clamp, pack, store."""

from __future__ import annotations

import triton
import triton.language as tl


def _metadata(grid, kernel, args):
    keys = args["K"]
    tokens = keys.shape[0] * keys.shape[2]
    return {
        "name": "spectral_compress",
        "bytes": 2 * keys.numel() * keys.element_size() + tokens * args["token_bytes"],
        "flops32": 2 * tokens * args["HK"] * args["D"] * args["columns"],
    }


@triton.jit
def _codes(x, ENCODE, OFFSET, TOP, SHIFT, columns, inside, count, D: tl.constexpr, DP: tl.constexpr):
    """Planes int32 `[T, n]` of some columns (not masked to their widths). Sums are exact to float32."""
    d = tl.arange(0, DP)
    at = ENCODE + d[:, None] * count + columns[None, :]
    matrix = tl.load(at, mask=(d < D)[:, None] & inside[None, :], other=0.0)
    offset = tl.load(OFFSET + columns, mask=inside, other=0.0)
    top = tl.load(TOP + columns, mask=inside, other=0.0)
    shift = tl.load(SHIFT + columns, mask=inside, other=0)
    y = tl.dot(x, matrix, input_precision="ieee") + offset[None, :]
    rounded = tl.floor(y + 0.5)
    codes = tl.minimum(tl.maximum(rounded, 0.0), top[None, :]).to(tl.int32)
    return codes >> shift[None, :]


@triton.jit
def _write_band(
    x,
    rows,
    valid,
    nbytes,
    start,
    ENCODE,
    OFFSET,
    TOP,
    SHIFT,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    COUNT: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    T: tl.constexpr,
):
    """Pack one band of `WIDTH`-bit planes whose first column is `start`."""
    byte = tl.arange(0, PADDED)
    inside = byte < nbytes
    packed = tl.zeros((T, PADDED), tl.int32)
    for j in tl.static_range(8 // WIDTH):
        codes = _codes(x, ENCODE, OFFSET, TOP, SHIFT, start + j * PADDED + byte, inside, COUNT, D, DP)
        packed = packed | ((codes & (2**WIDTH - 1)) << (j * WIDTH))
    at = rows[:, None] + byte[None, :]
    tl.store(at, packed.to(tl.uint8), mask=valid[:, None] & inside[None, :])


@triton.jit(launch_metadata=_metadata, do_not_specialize=["token_bytes", "columns"])
def compress_kernel(
    K,
    V,
    STORAGE,
    PAGES,
    HEADS,
    KEY_ENCODE,
    KEY_OFFSET,
    KEY_TOP,
    KEY_SHIFT,
    VALUE_ENCODE,
    VALUE_OFFSET,
    VALUE_TOP,
    VALUE_SHIFT,
    INDEX_ENCODE,
    INDEX_OFFSET,
    INDEX_TOP,
    INDEX_SHIFT,
    tokens,
    token_bytes,
    columns,
    HK: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    K4: tl.constexpr,
    K2: tl.constexpr,
    K1: tl.constexpr,
    V4: tl.constexpr,
    V2: tl.constexpr,
    V1: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
    T: tl.constexpr,
):
    """Grid (N·Hk, 128 / T, 2 + index): kind 0 writes keys, 1 values, 2 the index. K, V: `[N, Hk, tokens, D]`."""
    nh = tl.program_id(0).to(tl.int64)
    kind = tl.program_id(2)
    n = nh // HK
    h = nh % HK
    t = tl.program_id(1) * T + tl.arange(0, T)
    valid = t < tokens
    slot = 128 - tokens + t
    d = tl.arange(0, DP)
    at = nh * tokens * D + t[:, None] * D + d[None, :]
    table = HEADS + h * 9
    page = STORAGE + tl.load(PAGES + n)
    row = tl.load(table + 1)
    rows = page + tl.load(table) + slot * row
    k4 = tl.load(table + 2)
    k2 = tl.load(table + 3)
    k1 = tl.load(table + 4)
    if kind == 0:
        x = tl.load(K + at, mask=valid[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        PLANES: tl.constexpr = 2 * K4 + 4 * K2 + 8 * K1
        encode = KEY_ENCODE + h * D * PLANES
        offset = KEY_OFFSET + h * PLANES
        top = KEY_TOP + h * PLANES
        shift = KEY_SHIFT + h * PLANES
        if K4 > 0:
            _write_band(x, rows, valid, k4, 0, encode, offset, top, shift, 4, K4, PLANES, D, DP, T)
        if K2 > 0:
            _write_band(x, rows + k4, valid, k2, 2 * K4, encode, offset, top, shift, 2, K2, PLANES, D, DP, T)
        if K1 > 0:
            start: tl.constexpr = 2 * K4 + 4 * K2
            _write_band(x, rows + k4 + k2, valid, k1, start, encode, offset, top, shift, 1, K1, PLANES, D, DP, T)
    elif kind == 1:
        x = tl.load(V + at, mask=valid[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        VALUE_PLANES: tl.constexpr = 2 * V4 + 4 * V2 + 8 * V1
        encode = VALUE_ENCODE + h * D * VALUE_PLANES
        offset = VALUE_OFFSET + h * VALUE_PLANES
        top = VALUE_TOP + h * VALUE_PLANES
        shift = VALUE_SHIFT + h * VALUE_PLANES
        rows += k4 + k2 + k1
        v4 = tl.load(table + 5)
        v2 = tl.load(table + 6)
        v1 = tl.load(table + 7)
        if V4 > 0:
            _write_band(x, rows, valid, v4, 0, encode, offset, top, shift, 4, V4, VALUE_PLANES, D, DP, T)
        if V2 > 0:
            _write_band(x, rows + v4, valid, v2, 2 * V4, encode, offset, top, shift, 2, V2, VALUE_PLANES, D, DP, T)
        if V1 > 0:
            value_start: tl.constexpr = 2 * V4 + 4 * V2
            _write_band(
                x, rows + v4 + v2, valid, v1, value_start, encode, offset, top, shift, 1, V1, VALUE_PLANES, D, DP, T
            )
    else:
        x = tl.load(K + at, mask=valid[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        byte = tl.arange(0, HALF)
        inside = byte < RANK // 2
        encode = INDEX_ENCODE + h * D * RANK
        parameters = h * RANK
        low = _codes(
            x,
            encode,
            INDEX_OFFSET + parameters,
            INDEX_TOP + parameters,
            INDEX_SHIFT + parameters,
            byte,
            inside,
            RANK,
            D,
            DP,
        )
        high = _codes(
            x,
            encode,
            INDEX_OFFSET + parameters,
            INDEX_TOP + parameters,
            INDEX_SHIFT + parameters,
            RANK // 2 + byte,
            inside,
            RANK,
            D,
            DP,
        )
        index = page + tl.load(table + 8)
        packed = ((low & 15) | ((high & 15) << 4)).to(tl.uint8)
        tl.store(index + byte[None, :] * 128 + slot[:, None], packed, mask=valid[:, None] & inside[None, :])
