"""One program a tile of tokens, head and kind: unpack, multiply, turn, store."""

from __future__ import annotations

import triton
import triton.language as tl

from sqkernels.rows.device import _band, head_bands, unpack4, unpack_small


def _metadata(grid, kernel, args):
    out = args["OUT_K"]
    tokens = out.shape[0] * out.shape[2]
    return {
        "name": "spectral_reconstruct",
        "bytes": tokens * args["token_bytes"] + 2 * out.numel() * out.element_size(),
    }


@triton.jit
def _product(planes, DECODE, start, COUNT: tl.constexpr, first, WIDTH: tl.constexpr, D: tl.constexpr, DW: tl.constexpr):
    """planes · decode for `WIDTH` columns from `first` on: float32 `[T, DW]`."""
    d = tl.arange(0, DW)
    n = start + tl.arange(0, COUNT)
    at = DECODE + n[:, None] * D + first + d[None, :]
    matrix = tl.load(at, mask=(d < WIDTH)[None, :], other=0.0).to(tl.float16)
    return tl.dot(planes, matrix)


@triton.jit
def _columns(
    rows,
    bands,
    DECODE,
    CONSTANT,
    first,
    B4: tl.constexpr,
    B2: tl.constexpr,
    B1: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    DW: tl.constexpr,
    FULL: tl.constexpr,
    T: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """`WIDTH` columns of keys or values from `first` on, float32 `[T, DW]`."""
    b4, b2, b1 = bands
    d = tl.arange(0, DW)
    x = tl.zeros((T, DW), tl.float32) + tl.load(CONSTANT + first + d, mask=d < WIDTH, other=0.0)[None, :]
    if B4 > 0:
        low, high = unpack4(_band(rows, 0, b4, B4, FULL), ASSEMBLY)
        x += _product(low, DECODE, 0, B4, first, WIDTH, D, DW)
        x += _product(high, DECODE, B4, B4, first, WIDTH, D, DW)
    if B2 > 0:
        x += _product(
            unpack_small(_band(rows, b4, b2, B2, FULL), 2, T, B2), DECODE, 2 * B4, 4 * B2, first, WIDTH, D, DW
        )
    if B1 > 0:
        planes = unpack_small(_band(rows, b4 + b2, b1, B1, FULL), 1, T, B1)
        x += _product(planes, DECODE, 2 * B4 + 4 * B2, 8 * B1, first, WIDTH, D, DW)
    return x


@triton.jit(launch_metadata=_metadata, do_not_specialize=["token_bytes"])
def reconstruct_kernel(
    STORAGE,
    PAGES,
    HEADS,
    KEY_DECODE,
    KEY_CONSTANT,
    VALUE_DECODE,
    VALUE_CONSTANT,
    COS,
    SIN,
    OUT_K,
    OUT_V,
    n_pages,
    token_bytes,
    HK: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    DH: tl.constexpr,
    UNIFORM: tl.constexpr,
    FULL: tl.constexpr,
    ALIGN: tl.constexpr,
    ROW: tl.constexpr,
    BANDS: tl.constexpr,
    K4: tl.constexpr,
    K2: tl.constexpr,
    K1: tl.constexpr,
    V4: tl.constexpr,
    V2: tl.constexpr,
    V1: tl.constexpr,
    ROPE: tl.constexpr,
    T: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Grid (n_pages · 128 / T, B·Hk, 2). OUT_K, OUT_V: `[B, Hk, n_pages·128, D]`. DP, DH: powers of two
    that hold D and D / 2."""
    bh = tl.program_id(1).to(tl.int64)
    b = bh // HK
    h = bh % HK
    TILES: tl.constexpr = 128 // T
    tile = tl.program_id(0)
    slot = tile * T + tl.arange(0, T)
    page = tl.multiple_of(tl.load(PAGES + b * n_pages + tile // TILES), 16)
    offset, row_bytes, bands = head_bands(HEADS, h, UNIFORM, ALIGN, ROW, BANDS)
    k4, k2, k1, v4, v2, v1 = bands
    rows = STORAGE + page + offset + ((tile % TILES) * T + tl.arange(0, T)) * row_bytes
    d = tl.arange(0, DP)
    at = (bh * n_pages * 128 + slot)[:, None] * D + d[None, :]
    inside = (d < D)[None, :] & (slot < n_pages * 128)[:, None]
    if tl.program_id(2) == 0:
        PLANES: tl.constexpr = 2 * K4 + 4 * K2 + 8 * K1
        decode = KEY_DECODE + h * PLANES * D
        constant = KEY_CONSTANT + h * D
        if ROPE:
            HALF: tl.constexpr = D // 2
            e = tl.arange(0, DH)
            left = _columns(rows, (k4, k2, k1), decode, constant, 0, K4, K2, K1, HALF, D, DH, FULL, T, ASSEMBLY)
            right = _columns(rows, (k4, k2, k1), decode, constant, HALF, K4, K2, K1, HALF, D, DH, FULL, T, ASSEMBLY)
            table = (b * n_pages * 128 + slot)[:, None] * D + e[None, :]
            there = (e < HALF)[None, :] & (slot >= 0)[:, None]
            x = left * tl.load(COS + table, mask=there, other=0.0)
            x -= right * tl.load(SIN + table, mask=there, other=0.0)
            y = right * tl.load(COS + table + HALF, mask=there, other=0.0)
            y += left * tl.load(SIN + table + HALF, mask=there, other=0.0)
            out = OUT_K + (bh * n_pages * 128 + slot)[:, None] * D + e[None, :]
            tl.store(out, x.to(OUT_K.dtype.element_ty), mask=there)
            tl.store(out + HALF, y.to(OUT_K.dtype.element_ty), mask=there)
        else:
            x = _columns(rows, (k4, k2, k1), decode, constant, 0, K4, K2, K1, D, D, DP, FULL, T, ASSEMBLY)
            tl.store(OUT_K + at, x.to(OUT_K.dtype.element_ty), mask=inside)
    else:
        VALUE_PLANES: tl.constexpr = 2 * V4 + 4 * V2 + 8 * V1
        x = _columns(
            rows + (k4 + k2 + k1),
            (v4, v2, v1),
            VALUE_DECODE + h * VALUE_PLANES * D,
            VALUE_CONSTANT + h * D,
            0,
            V4,
            V2,
            V1,
            D,
            D,
            DP,
            FULL,
            T,
            ASSEMBLY,
        )
        tl.store(OUT_V + at, x.to(OUT_V.dtype.element_ty), mask=inside)
