"""One program a tile of tokens and a head's keys or values: project, round, clamp, pack, store where each token belongs."""

from __future__ import annotations

import triton
import triton.language as tl

from sqkernels.spectral_compress.triton import write_row


@triton.jit(do_not_specialize=["tokens", "rows_bytes"])
def slots_kernel(
    K,
    V,
    PAGES,
    SLOTS,
    HEADS,
    KEY_ENCODE,
    KEY_OFFSET,
    KEY_TOP,
    KEY_SHIFT,
    VALUE_ENCODE,
    VALUE_OFFSET,
    VALUE_TOP,
    VALUE_SHIFT,
    tokens,
    key_stride,
    value_stride,
    page_stride,
    rows_bytes,
    HK: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    KEY_COUNT: tl.constexpr,
    VALUE_COUNT: tl.constexpr,
    K4: tl.constexpr,
    K2: tl.constexpr,
    K1: tl.constexpr,
    V4: tl.constexpr,
    V2: tl.constexpr,
    V1: tl.constexpr,
    EXACT: tl.constexpr,
    STEP: tl.constexpr,
    T: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid (tokens / T, Hk, 2): keys, then values. K, V: `[tokens, Hk, D]`, tokens `key_stride` and `value_stride` numbers apart.
    PAGES: uint8, pages `page_stride` bytes apart, `rows_bytes` of rows each, then `[2, Hk, EXACT, D]` exact numbers."""
    t = (tl.program_id(0) * T + tl.arange(0, T)).to(tl.int64)
    h = tl.program_id(1)
    role = tl.program_id(2)
    slot = tl.load(SLOTS + t, mask=t < tokens, other=-1)
    valid = slot >= 0
    slot = tl.where(valid, slot, 0)
    place = slot % 128
    page = PAGES + (slot // 128) * page_stride
    table = HEADS + h * 9
    rows = page + tl.load(table) + place * tl.load(table + 1)
    if role == 0:
        x_at = K + t * key_stride + h * D
        at = h * KEY_COUNT
        matrices = (KEY_ENCODE + at * D, KEY_OFFSET + at, KEY_TOP + at, KEY_SHIFT + at)
        write_row(x_at, valid, rows, table + 2, matrices, K4, K2, K1, KEY_COUNT, D, STEP, T, UPCAST)
        _write_exact(x_at, valid, page + rows_bytes, place, h, D, DP, EXACT, K.dtype.element_ty)
    else:
        x_at = V + t * value_stride + h * D
        rows += tl.load(table + 2) + tl.load(table + 3) + tl.load(table + 4)
        at = h * VALUE_COUNT
        matrices = (VALUE_ENCODE + at * D, VALUE_OFFSET + at, VALUE_TOP + at, VALUE_SHIFT + at)
        write_row(x_at, valid, rows, table + 5, matrices, V4, V2, V1, VALUE_COUNT, D, STEP, T, UPCAST)
        _write_exact(x_at, valid, page + rows_bytes, place, HK + h, D, DP, EXACT, V.dtype.element_ty)


@triton.jit
def _write_exact(
    x_at, valid, exact, place, row, D: tl.constexpr, DP: tl.constexpr, EXACT: tl.constexpr, TYPE: tl.constexpr
):
    """Tokens of the first EXACT places as they are; exact: pointers `[T]` to their pages' exact parts."""
    d = tl.arange(0, DP)
    mask = (valid & (place < EXACT))[:, None] & (d < D)[None, :]
    x = tl.load(x_at[:, None] + d[None, :], mask=mask, other=0.0)
    at = exact.to(tl.pointer_type(TYPE)) + (row * EXACT + place) * D
    tl.store(at[:, None] + d[None, :], x, mask=mask)
