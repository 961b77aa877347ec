"""A program takes some pages of one head's keys or values: unpack, multiply, turn, store. Its matrix stays in shared memory."""

from __future__ import annotations

import triton
import triton.language as tl

from sqkernels.common.device import head_bands
from sqkernels.common.unpack import load_bytes, load_words, unpack4_centred, unpack_small
from sqkernels.spectral_reconstruct.traffic import reconstruct_bytes


def _metadata(grid, kernel, args):
    return {"name": "spectral_reconstruct", "bytes": reconstruct_bytes(args)}


@triton.jit
def _matrix(DECODE, start, first, COUNT: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, DW: tl.constexpr):
    """Rows start … start + COUNT and columns first … first + WIDTH of a head's decode matrix, float16 `[COUNT, DW]`."""
    d = tl.arange(0, DW)
    n = start + tl.arange(0, COUNT)
    return tl.load(DECODE + n[:, None] * D + first + d[None, :], mask=(d < WIDTH)[None, :], other=0.0)


@triton.jit
def _matrices(
    DECODE,
    CONSTANT,
    first,
    B4: tl.constexpr,
    B2: tl.constexpr,
    B1: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    DW: tl.constexpr,
):
    """(constant, matrices of nibbles 0 … 3, of 2-bit and of 1-bit planes); 0.0 for bands that are not there."""
    d = tl.arange(0, DW)
    constant = tl.load(CONSTANT + first + d, mask=d < WIDTH, other=0.0)
    m0 = 0.0
    m1 = 0.0
    m2 = 0.0
    m3 = 0.0
    two = 0.0
    one = 0.0
    if B4 > 0:
        m0 = _matrix(DECODE, 0, first, B4, WIDTH, D, DW)
        m1 = _matrix(DECODE, B4, first, B4, WIDTH, D, DW)
        m2 = _matrix(DECODE, 2 * B4, first, B4, WIDTH, D, DW)
        m3 = _matrix(DECODE, 3 * B4, first, B4, WIDTH, D, DW)
    if B2 > 0:
        two = _matrix(DECODE, 4 * B4, first, 4 * B2, WIDTH, D, DW)
    if B1 > 0:
        one = _matrix(DECODE, 4 * B4 + 4 * B2, first, 8 * B1, WIDTH, D, DW)
    return constant, m0, m1, m2, m3, two, one


@triton.jit
def _columns(
    rows,
    start,
    bands,
    matrices,
    B4: tl.constexpr,
    B2: tl.constexpr,
    B1: tl.constexpr,
    DW: tl.constexpr,
    FULL: tl.constexpr,
    T: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Keys or values float32 `[T, DW]` of rows whose bands begin at byte `start`."""
    b4, b2, b1 = bands
    constant, m0, m1, m2, m3, two, one = matrices
    x = tl.zeros((T, DW), tl.float32) + constant[None, :]
    if B4 > 0:
        n0, n1, n2, n3 = unpack4_centred(load_words(rows, start, b4, B4, FULL), ASSEMBLY)
        x = tl.dot(n0, m0, x)
        x = tl.dot(n1, m1, x)
        x = tl.dot(n2, m2, x)
        x = tl.dot(n3, m3, x)
    if B2 > 0:
        x = tl.dot(unpack_small(load_bytes(rows, start + b4, b2, B2, FULL), 2, T, B2), two, x)
    if B1 > 0:
        x = tl.dot(unpack_small(load_bytes(rows, start + b4 + b2, b1, B1, FULL), 1, T, B1), one, x)
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
    pages_per_program,
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
    """Grid (n_pages / pages_per_program, B·Hk, 2): keys, then values. OUT_K, OUT_V: `[B, Hk, n_pages·128, D]`. DP, DH:
    powers of two that hold D and D / 2."""
    bh = tl.program_id(1).to(tl.int64)
    b = bh // HK
    h = bh % HK
    TILES: tl.constexpr = 128 // T
    HALF: tl.constexpr = D // 2
    begin = tl.program_id(0) * pages_per_program * TILES
    end = tl.minimum(begin + pages_per_program * TILES, n_pages * TILES)
    offset, row_bytes, bands = head_bands(HEADS, h, UNIFORM, ALIGN, ROW, BANDS)
    k4, k2, k1, v4, v2, v1 = bands
    d = tl.arange(0, DP)
    e = tl.arange(0, DH)
    if tl.program_id(2) == 0:
        PLANES: tl.constexpr = 4 * K4 + 4 * K2 + 8 * K1
        decode = KEY_DECODE + h * PLANES * D
        constant = KEY_CONSTANT + h * D
        if ROPE:
            left = _matrices(decode, constant, 0, K4, K2, K1, HALF, D, DH)
            right = _matrices(decode, constant, HALF, K4, K2, K1, HALF, D, DH)
            for tile in range(begin, end):
                rows = _rows(STORAGE, PAGES + b * n_pages, offset, row_bytes, tile, T)
                slot = b * n_pages * 128 + tile * T + tl.arange(0, T)
                table = slot[:, None] * D + e[None, :]
                inside = (e < HALF)[None, :] & (slot >= 0)[:, None]
                x = _columns(rows, 0, (k4, k2, k1), left, K4, K2, K1, DH, FULL, T, ASSEMBLY)
                y = _columns(rows, 0, (k4, k2, k1), right, K4, K2, K1, DH, FULL, T, ASSEMBLY)
                turned = x * tl.load(COS + table, mask=inside, other=0.0)
                turned -= y * tl.load(SIN + table, mask=inside, other=0.0)
                other = y * tl.load(COS + table + HALF, mask=inside, other=0.0)
                other += x * tl.load(SIN + table + HALF, mask=inside, other=0.0)
                out = OUT_K + (bh * n_pages * 128 + tile * T + tl.arange(0, T))[:, None] * D + e[None, :]
                tl.store(out, turned.to(OUT_K.dtype.element_ty), mask=inside)
                tl.store(out + HALF, other.to(OUT_K.dtype.element_ty), mask=inside)
        else:
            keys = _matrices(decode, constant, 0, K4, K2, K1, D, D, DP)
            for tile in range(begin, end):
                rows = _rows(STORAGE, PAGES + b * n_pages, offset, row_bytes, tile, T)
                x = _columns(rows, 0, (k4, k2, k1), keys, K4, K2, K1, DP, FULL, T, ASSEMBLY)
                at = (bh * n_pages * 128 + tile * T + tl.arange(0, T))[:, None] * D + d[None, :]
                tl.store(OUT_K + at, x.to(OUT_K.dtype.element_ty), mask=(d < D)[None, :])
    else:
        VALUE_PLANES: tl.constexpr = 4 * V4 + 4 * V2 + 8 * V1
        values = _matrices(VALUE_DECODE + h * VALUE_PLANES * D, VALUE_CONSTANT + h * D, 0, V4, V2, V1, D, D, DP)
        for tile in range(begin, end):
            rows = _rows(STORAGE, PAGES + b * n_pages, offset, row_bytes, tile, T)
            x = _columns(rows, k4 + k2 + k1, (v4, v2, v1), values, V4, V2, V1, DP, FULL, T, ASSEMBLY)
            at = (bh * n_pages * 128 + tile * T + tl.arange(0, T))[:, None] * D + d[None, :]
            tl.store(OUT_V + at, x.to(OUT_V.dtype.element_ty), mask=(d < D)[None, :])


@triton.jit
def _rows(STORAGE, pages, offset, row_bytes, tile, T: tl.constexpr):
    """Pointers `[T]` to the rows of one tile."""
    TILES: tl.constexpr = 128 // T
    page = tl.multiple_of(tl.load(pages + tile // TILES), 16)
    return STORAGE + page + offset + ((tile % TILES) * T + tl.arange(0, T)) * row_bytes
