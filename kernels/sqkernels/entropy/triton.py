"""A program takes a stream: its lanes step together, a scan over them tells which word goes to whom.

Addresses follow from the stream table, which the host makes; what a packet says only ever moves positions that are
compared with the stream's own length before they are used.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _stream(FIELDS, s):
    """Fields of stream s: row, rows, column, tokens, lane, lanes, stride, state, block."""
    f = FIELDS + s * 9
    return (
        tl.load(f),
        tl.load(f + 1),
        tl.load(f + 2).to(tl.int64),
        tl.load(f + 3),
        tl.load(f + 4),
        tl.load(f + 5),
        tl.load(f + 6),
        tl.load(f + 7).to(tl.int64),
        tl.load(f + 8).to(tl.int64),
    )


@triton.jit
def _table(CHOICE, SHIFTS, GROUP, row, classes, block, groups, tables, SHIFTED: tl.constexpr):
    """Tables int32 `[LANES]` of a row for the lanes' classes, always one that there is."""
    table = tl.load(CHOICE + row.to(tl.int64) * 16 + (classes & 15)).to(tl.int32)
    if SHIFTED:
        group = tl.minimum(tl.maximum(tl.load(GROUP + row), 0), groups - 1)
        table += tl.load(SHIFTS + block * groups + group).to(tl.int32)
    return tl.minimum(tl.maximum(table, 0), tables - 1)


@triton.jit
def _classes(CLASSES, row, column, position, there, columns, split):
    kind = tl.where(row >= split, columns, 0)
    return tl.load(CLASSES + kind + column + position, mask=there, other=0).to(tl.int32)


@triton.jit
def _symbol(SYMBOLS, VALUES, table, at, there, SPAN: tl.constexpr):
    """(frequency << 16 | first slot, escapes) of the values at some places; values without a frequency escape."""
    value = tl.load(VALUES + at, mask=there, other=0).to(tl.int32)
    outside = (value > SPAN) | (value < -SPAN)
    symbol = tl.where(outside, 2 * SPAN + 1, value + SPAN)
    packed = tl.load(SYMBOLS + table * 32 + symbol)
    escapes = outside | (packed == 0)
    escape = tl.load(SYMBOLS + table * 32 + 2 * SPAN + 1)
    return tl.where(escapes, escape, packed), escapes & there


@triton.jit(do_not_specialize=["columns", "split", "groups", "tables"])
def rans_decode_kernel(
    WORDS,
    BEGINS,
    COUNTS,
    STATES,
    ESCAPE_BEGINS,
    ESCAPES,
    FIELDS,
    CHOICE,
    CLASSES,
    SHIFTS,
    GROUP,
    SLOTS,
    OUT,
    POSITIONS,
    FINALS,
    STATUS,
    columns,
    split,
    groups,
    tables,
    SPAN: tl.constexpr,
    SHIFTED: tl.constexpr,
    REPEATED: tl.constexpr,
    LANES: tl.constexpr,
):
    """Grid (streams,). WORDS: int16. BEGINS, COUNTS, ESCAPE_BEGINS, ESCAPES: int64 `[S]`. STATES: int32 `[lanes]`. OUT:
    `[R, N]`. POSITIONS: int64 `[E]`. FINALS: int16 `[lanes]`. STATUS: int32 `[S]`."""
    s = tl.program_id(0)
    first, rows, column, tokens, lane0, lanes, stride, state, block = _stream(FIELDS, s)
    words = WORDS + tl.load(BEGINS + s)
    count = tl.load(COUNTS + s).to(tl.int32)
    positions = POSITIONS + tl.load(ESCAPE_BEGINS + s)
    escape_count = tl.load(ESCAPES + s).to(tl.int32)
    lane = tl.arange(0, LANES)
    live = lane < lanes
    position = lane0 + lane
    there = live & (position < tokens)
    x = tl.load(STATES + state + lane, mask=live, other=65536).to(tl.uint32, bitcast=True)
    taken = 0
    found = 0
    repeats = (tokens + stride - 1) // stride
    keys = _classes(CLASSES, split - 1, column, position, there, columns, split)
    values = _classes(CLASSES, split, column, position, there, columns, split)
    for step in range(0, rows * repeats):
        row = first + step
        classes = tl.where(row >= split, values, keys)
        if REPEATED:
            row = first + step // repeats
            position = (step % repeats) * stride + lane0 + lane
            there = live & (position < tokens)
            classes = _classes(CLASSES, row, column, position, there, columns, split)
        table = _table(CHOICE, SHIFTS, GROUP, row, classes, block, groups, tables, SHIFTED)
        entry = tl.load(SLOTS + table * 1024 + (x & 1023).to(tl.int32))
        symbol = entry & 31
        y = (entry >> 15).to(tl.uint32) * (x >> 10) + ((entry >> 5) & 1023).to(tl.uint32)
        x = tl.where(there, y, x)
        escaped = there & (symbol == 2 * SPAN + 1)
        short = there & (x < 65536)
        wanted = short.to(tl.int32) | (escaped.to(tl.int32) << 16)
        order = tl.cumsum(wanted, 0)
        total = tl.sum(wanted, 0)
        at = taken + (order & 0xFFFF) - 1
        word = tl.load(words + at, mask=short & (at < count), other=0).to(tl.int32) & 0xFFFF
        x = tl.where(short, (x << 16) | word.to(tl.uint32), x)
        place = row.to(tl.int64) * columns + column + position
        rank = found + (order >> 16) - 1
        tl.store(positions + rank, place, mask=escaped & (rank < escape_count))
        value = tl.where(escaped, 0, symbol - SPAN)
        tl.store(OUT + place, value.to(OUT.dtype.element_ty), mask=there)
        taken += total & 0xFFFF
        found += total >> 16
    tl.store(FINALS + state + lane, (x & 0xFFFF).to(tl.int32).to(tl.int16), mask=live)
    wrong = tl.max((live & ((x >> 16) != 1)).to(tl.int32), 0)
    status = (taken > count).to(tl.int32) + 2 * (taken < count).to(tl.int32)
    status += 4 * wrong + 8 * (found != escape_count).to(tl.int32)
    tl.store(STATUS + s, status)


@triton.jit(do_not_specialize=["columns", "split", "groups", "tables"])
def rans_encode_kernel(
    VALUES,
    INITIAL,
    FIELDS,
    CHOICE,
    CLASSES,
    SHIFTS,
    GROUP,
    SYMBOLS,
    ENDS,
    SCRATCH,
    COUNTS,
    STATES,
    columns,
    split,
    groups,
    tables,
    SPAN: tl.constexpr,
    SHIFTED: tl.constexpr,
    REPEATED: tl.constexpr,
    LANES: tl.constexpr,
):
    """Grid (streams,). VALUES: `[R, N]`. INITIAL: int16 `[lanes]`. SCRATCH: int16, where a stream's words end at ENDS:
    int64 `[S]`. COUNTS: int64 `[S]`. STATES: int32 `[lanes]`."""
    s = tl.program_id(0)
    first, rows, column, tokens, lane0, lanes, stride, state, block = _stream(FIELDS, s)
    words = SCRATCH + tl.load(ENDS + s)
    lane = tl.arange(0, LANES)
    live = lane < lanes
    position = lane0 + lane
    there = live & (position < tokens)
    x = (tl.load(INITIAL + state + lane, mask=live, other=0).to(tl.int32) & 0xFFFF).to(tl.uint32) + 65536
    made = 0
    repeats = (tokens + stride - 1) // stride
    keys = _classes(CLASSES, split - 1, column, position, there, columns, split)
    values = _classes(CLASSES, split, column, position, there, columns, split)
    for left in range(0, rows * repeats):
        step = rows * repeats - 1 - left
        row = first + step
        classes = tl.where(row >= split, values, keys)
        if REPEATED:
            row = first + step // repeats
            position = (step % repeats) * stride + lane0 + lane
            there = live & (position < tokens)
            classes = _classes(CLASSES, row, column, position, there, columns, split)
        table = _table(CHOICE, SHIFTS, GROUP, row, classes, block, groups, tables, SHIFTED)
        place = row.to(tl.int64) * columns + column + position
        packed, _ = _symbol(SYMBOLS, VALUES, table, place, there, SPAN)
        frequency = (packed >> 16).to(tl.uint32)
        full = there & ((x >> 22) >= frequency)
        order = tl.cumsum(full.to(tl.int32), 0)
        total = tl.sum(full.to(tl.int32), 0)
        made += total
        tl.store(words - made + order - 1, (x & 0xFFFF).to(tl.int32).to(tl.int16), mask=full)
        x = tl.where(full, x >> 16, x)
        quotient = x // frequency
        y = (quotient << 10) + (x - quotient * frequency) + (packed & 0xFFFF).to(tl.uint32)
        x = tl.where(there, y, x)
    tl.store(STATES + state + lane, x.to(tl.int32, bitcast=True), mask=live)
    tl.store(COUNTS + s, made.to(tl.int64))


@triton.jit(do_not_specialize=["columns", "split", "groups", "tables"])
def rans_escape_kernel(
    VALUES,
    FIELDS,
    CHOICE,
    CLASSES,
    SHIFTS,
    GROUP,
    SYMBOLS,
    BEGINS,
    COUNTS,
    POSITIONS,
    columns,
    split,
    groups,
    tables,
    SPAN: tl.constexpr,
    SHIFTED: tl.constexpr,
    WRITE: tl.constexpr,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Grid (streams, parts of `STEPS` steps). Counts escapes, COUNTS: int64 `[S, parts]`, or with WRITE stores their places from
    BEGINS: int64 `[S, parts]` on."""
    s = tl.program_id(0)
    part = s.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    first, rows, column, tokens, lane0, lanes, stride, _state, block = _stream(FIELDS, s)
    lane = tl.arange(0, LANES)
    found = 0
    repeats = (tokens + stride - 1) // stride
    positions = POSITIONS
    if WRITE:
        positions += tl.load(BEGINS + part)
    begin = tl.program_id(1) * STEPS
    for step in range(begin, tl.minimum(begin + STEPS, rows * repeats)):
        row = first + step // repeats
        position = (step % repeats) * stride + lane0 + lane
        there = (lane < lanes) & (position < tokens)
        classes = _classes(CLASSES, row, column, position, there, columns, split)
        table = _table(CHOICE, SHIFTS, GROUP, row, classes, block, groups, tables, SHIFTED)
        place = row.to(tl.int64) * columns + column + position
        _, escapes = _symbol(SYMBOLS, VALUES, table, place, there, SPAN)
        if WRITE:
            order = tl.cumsum(escapes.to(tl.int32), 0)
            tl.store(positions + found + order - 1, place, mask=escapes)
        found += tl.sum(escapes.to(tl.int32), 0)
    if not WRITE:
        tl.store(COUNTS + part, found.to(tl.int64))


@triton.jit
def rans_words_kernel(SCRATCH, ENDS, COUNTS, BEGINS, WORDS, TILE: tl.constexpr):
    """Grid (streams,). Copies each stream's words from the end of its scratch to BEGINS: int64 `[S]`."""
    s = tl.program_id(0)
    count = tl.load(COUNTS + s)
    source = SCRATCH + tl.load(ENDS + s) - count
    target = WORDS + tl.load(BEGINS + s)
    for start in range(0, count, TILE):
        at = start + tl.arange(0, TILE)
        tl.store(target + at, tl.load(source + at, mask=at < count), mask=at < count)
