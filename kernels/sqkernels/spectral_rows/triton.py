"""One pass over memory each; arithmetic in float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _step(CLASSES, kind, column, columns, there):
    """2^((class − 4) / 2) of some columns, for keys (kind 0) or values; 1 for classes beyond 8."""
    classes = tl.load(CLASSES + kind * columns + column, mask=there, other=4)
    classes = tl.where(classes > 8, 4, classes)
    return tl.exp2((classes.to(tl.float32) - 4.0) * 0.5)


@triton.jit(do_not_specialize=["rows", "split"])
def dequantize_kernel(
    SYMBOLS, CLASSES, CENTROID, SCALE, OUT, rows, columns, split, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Grid (tiles of columns, tiles of rows). SYMBOLS: `[R, N]`. CLASSES: uint8 `[2, N]`. OUT: float16 `[R, N]`, rows `width` apart."""
    first_row = tl.program_id(1) * ROWS
    first = tl.program_id(0) * COLUMNS
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    row, column = first_row + r, first + c
    some, there = row < rows, column < columns
    steps = tl.where(
        (row >= split)[:, None],
        _step(CLASSES, 1, column, columns, there)[None, :],
        _step(CLASSES, 0, column, columns, there)[None, :],
    )
    mask = some[:, None] & there[None, :]
    symbols = SYMBOLS + first_row.to(tl.int64) * columns + first
    symbol = tl.load(symbols + (r[:, None] * columns + c[None, :]), mask=mask, other=0).to(tl.int32)
    centroid = tl.load(CENTROID + row, mask=some, other=1.0)[:, None]
    scale = tl.load(SCALE + row, mask=some, other=0.0)[:, None]
    value = symbol.to(tl.float32)
    value = tl.where((symbol == 1) | (symbol == -1), value * centroid, value)
    out = OUT + first_row.to(tl.int64) * width + first
    tl.store(out + (r[:, None] * width + c[None, :]), (value * scale * steps).to(tl.float16), mask=mask)


@triton.jit(do_not_specialize=["count", "rows", "columns", "split", "width"])
def escaped_kernel(
    POSITIONS, ESCAPED, CLASSES, CENTROID, SCALE, OUT, count, rows, columns, split, width, TILE: tl.constexpr
):
    """Grid (tiles of escaped values). Puts int32 `[E]` values in their places, int64 `[E]`, in OUT: float16 `[R, N]`."""
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    here = at < count
    place = tl.load(POSITIONS + at, mask=here, other=-1)
    row, column = place // columns, place % columns
    here &= (place >= 0) & (row < rows)
    symbol = tl.load(ESCAPED + at, mask=here, other=0)
    kind = (row >= split).to(tl.int64)
    step = _step(CLASSES, kind, column, columns, here)
    value = symbol.to(tl.float32)
    centroid = tl.load(CENTROID + row, mask=here, other=1.0)
    value = tl.where((symbol == 1) | (symbol == -1), value * centroid, value)
    scale = tl.load(SCALE + row, mask=here, other=0.0)
    tl.store(OUT + row * width + column, (value * scale * step).to(tl.float16), mask=here)


@triton.jit
def _offset(CONSTANT, OWN, BEFORE, own, before, column, there, mask, stride, PREDICTED: tl.constexpr):
    """What is added to (or taken from) some columns of some tokens: float32 `[T, columns]` (or `[1, columns]`)."""
    offset = tl.load(CONSTANT + column, mask=there, other=0.0)[None, :]
    if PREDICTED:
        offset = offset + tl.load(OWN + own[:, None] * stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
        offset += tl.load(BEFORE + before[:, None] * stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    return offset


@triton.jit(do_not_specialize=["tokens", "heads", "factor"])
def store_rows_kernel(
    X,
    CONSTANT,
    OWN,
    BEFORE,
    OWN_ROW,
    BEFORE_ROW,
    COS,
    SIN,
    OUT,
    LAYERS,
    OFFSETS,
    tokens,
    heads,
    width,
    stride,
    head_stride,
    factor,
    D: tl.constexpr,
    F: tl.constexpr,
    FP: tl.constexpr,
    TP: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    PREDICTED: tl.constexpr,
    T: tl.constexpr,
):
    """Grid (tiles of tokens, layers · heads). X: `[N, layers · heads · D]`, rows `width` apart. OWN, BEFORE: `[U, layers · heads · D]`,
    rows `stride` apart. LAYERS: int64, where each layer begins after OUT. OWN_ROW, BEFORE_ROW: int32 `[N]`. COS, SIN: float32 `[N, F]`."""
    t = tl.program_id(0) * T + tl.arange(0, T)
    head = tl.program_id(1)
    live = t < tokens
    own, before = t.to(tl.int64), t.to(tl.int64)
    if PREDICTED:
        own = tl.load(OWN_ROW + t, mask=live, other=0).to(tl.int64)
        before = tl.load(BEFORE_ROW + t, mask=live, other=0).to(tl.int64)
    out = (
        OUT + tl.load(LAYERS + head // heads) + (head % heads) * head_stride + tl.load(OFFSETS + t, mask=live, other=0)
    )
    x = X + t.to(tl.int64) * width
    if F > 0:
        j = tl.arange(0, FP)
        there = j < F
        mask = live[:, None] & there[None, :]
        first = 2 * j if NEIGHBOURS else j
        second = first + (1 if NEIGHBOURS else F)
        a_at, b_at = head * D + first, head * D + second
        a = tl.load(x[:, None] + a_at[None, :], mask=mask, other=0.0).to(tl.float32) * factor
        b = tl.load(x[:, None] + b_at[None, :], mask=mask, other=0.0).to(tl.float32) * factor
        a += _offset(CONSTANT, OWN, BEFORE, own, before, a_at, there, mask, stride, PREDICTED)
        b += _offset(CONSTANT, OWN, BEFORE, own, before, b_at, there, mask, stride, PREDICTED)
        angle = t.to(tl.int64)[:, None] * F + j[None, :]
        cos = tl.load(COS + angle, mask=mask, other=0.0)
        sin = tl.load(SIN + angle, mask=mask, other=0.0)
        tl.store(out[:, None] + first[None, :], (a * cos - b * sin).to(OUT.dtype.element_ty), mask=mask)
        tl.store(out[:, None] + second[None, :], (b * cos + a * sin).to(OUT.dtype.element_ty), mask=mask)
    if TP > 0:
        d = 2 * F + tl.arange(0, TP)
        there = d < D
        mask = live[:, None] & there[None, :]
        at = head * D + d
        value = tl.load(x[:, None] + at[None, :], mask=mask, other=0.0).to(tl.float32) * factor
        value += _offset(CONSTANT, OWN, BEFORE, own, before, at, there, mask, stride, PREDICTED)
        tl.store(out[:, None] + d[None, :], value.to(OUT.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "heads"])
def gather_rows_kernel(
    CACHE,
    LAYERS,
    OFFSETS,
    CONSTANT,
    OWN,
    BEFORE,
    OWN_ROW,
    BEFORE_ROW,
    COS,
    SIN,
    X,
    tokens,
    heads,
    width,
    stride,
    head_stride,
    D: tl.constexpr,
    F: tl.constexpr,
    FP: tl.constexpr,
    TP: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    PREDICTED: tl.constexpr,
    T: tl.constexpr,
):
    """Grid (tiles of tokens, layers · heads). The inverse of `store_rows_kernel`; X: float16 `[N, layers · heads · D]`, rows `width` apart."""
    t = tl.program_id(0) * T + tl.arange(0, T)
    head = tl.program_id(1)
    live = t < tokens
    own, before = t.to(tl.int64), t.to(tl.int64)
    if PREDICTED:
        own = tl.load(OWN_ROW + t, mask=live, other=0).to(tl.int64)
        before = tl.load(BEFORE_ROW + t, mask=live, other=0).to(tl.int64)
    source = CACHE + tl.load(LAYERS + head // heads) + (head % heads) * head_stride
    source += tl.load(OFFSETS + t, mask=live, other=0)
    x = X + t.to(tl.int64) * width
    if F > 0:
        j = tl.arange(0, FP)
        there = j < F
        mask = live[:, None] & there[None, :]
        first = 2 * j if NEIGHBOURS else j
        second = first + (1 if NEIGHBOURS else F)
        a_at, b_at = head * D + first, head * D + second
        a = tl.load(source[:, None] + first[None, :], mask=mask, other=0.0).to(tl.float32)
        b = tl.load(source[:, None] + second[None, :], mask=mask, other=0.0).to(tl.float32)
        angle = t.to(tl.int64)[:, None] * F + j[None, :]
        cos = tl.load(COS + angle, mask=mask, other=1.0)
        sin = tl.load(SIN + angle, mask=mask, other=0.0)
        size = cos * cos + sin * sin
        first_value = (a * cos + b * sin) / size
        second_value = (b * cos - a * sin) / size
        first_value -= _offset(CONSTANT, OWN, BEFORE, own, before, a_at, there, mask, stride, PREDICTED)
        second_value -= _offset(CONSTANT, OWN, BEFORE, own, before, b_at, there, mask, stride, PREDICTED)
        tl.store(x[:, None] + a_at[None, :], first_value.to(tl.float16), mask=mask)
        tl.store(x[:, None] + b_at[None, :], second_value.to(tl.float16), mask=mask)
    if TP > 0:
        d = 2 * F + tl.arange(0, TP)
        there = d < D
        mask = live[:, None] & there[None, :]
        at = head * D + d
        value = tl.load(source[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)
        value -= _offset(CONSTANT, OWN, BEFORE, own, before, at, there, mask, stride, PREDICTED)
        tl.store(x[:, None] + at[None, :], value.to(tl.float16), mask=mask)


@triton.jit(do_not_specialize=["rows", "split"])
def quantize_kernel(
    Y, GAIN, CLASSES, SYMBOLS, BAD, rows, columns, split, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Grid (tiles of columns, tiles of rows). Y: float32 `[R, N]`, rows `width` apart. SYMBOLS: int16 `[R, N]`. BAD: uint8 `[N]`, set to 1 where a
    symbol is not finite or beyond 15 bits."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    some, there = row < rows, column < columns
    steps = tl.where(
        (row >= split)[:, None],
        _step(CLASSES, 1, column, columns, there)[None, :],
        _step(CLASSES, 0, column, columns, there)[None, :],
    )
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    mask = some[:, None] & there[None, :]
    gain = tl.load(GAIN + row, mask=some, other=0.0)[:, None]
    scaled = tl.load(Y + (row.to(tl.int64)[:, None] * width + column[None, :]), mask=mask, other=0.0) * (gain / steps)
    good = (scaled < 32767.0) & (scaled > -32767.0)
    kept = tl.where(good, scaled, 0.0)
    rounded = (kept + 12582912.0) - 12582912.0  # to nearest, ties to even: 1.5 · 2^23
    tl.store(SYMBOLS + place, rounded.to(tl.int16), mask=mask)
    bad = tl.max((mask & (good == 0)).to(tl.int32), 0)
    tl.store(BAD + column, bad.to(tl.uint8), mask=there & (bad > 0))


@triton.jit(do_not_specialize=["rows"])
def energy_kernel(Y, GAIN, OUT, rows, columns, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Grid (tiles of columns, parts of `ROWS` rows). OUT: float32 `[parts, N]`, sums of squares of gain · Y (rows `width` apart)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < columns
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    first = tl.program_id(1) * ROWS
    for start in range(0, ROWS, 16):
        row = first + start + tl.arange(0, 16)
        mask = (row < rows)[:, None] & there[None, :]
        gain = tl.load(GAIN + row, mask=row < rows, other=0.0)[:, None]
        y = tl.load(Y + row.to(tl.int64)[:, None] * width + column[None, :], mask=mask, other=0.0) * gain
        total += tl.sum(y * y, 0)
    tl.store(OUT + tl.program_id(1) * columns + column, total, mask=there)
