"""One program a tile of tokens and a head's keys, values or index: project, round, clamp, pack, store."""

from __future__ import annotations

import triton
import triton.language as tl

from sqkernels.spectral_compress.traffic import compress_bytes


def _metadata(grid, kernel, args):
    tokens = args["K"].shape[0] * args["K"].shape[2]
    columns = args["KEY_COUNT"] + args["VALUE_COUNT"] + args["RANK"]
    return {
        "name": "spectral_compress",
        "bytes": compress_bytes(args),
        "flops32": 2 * tokens * args["HK"] * args["D"] * columns,
    }


@triton.jit
def _planes(
    x_at,
    valid,
    matrices,
    columns,
    inside,
    COUNT: tl.constexpr,
    D: tl.constexpr,
    STEP: tl.constexpr,
    T: tl.constexpr,
    WIDE: tl.constexpr,
    PADDED_ZEROS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Planes int32 `[T, WIDE]` of some columns (not masked to their widths); x_at: pointers `[T]` to tokens. PADDED_ZEROS:
    columns that are not `inside` hold zeros.

    The matrix is split into its leading bits and the rest, and each is multiplied by tokens as they are: 16 bits in all for
    bfloat16 tokens, 22 for float16 ones, which are exact in tf32; float32 tokens take three products (Ootomo and Yokota
    2022, arXiv 2203.03341).
    """
    ENCODE, OFFSET, TOP, SHIFT = matrices
    y = tl.zeros((T, WIDE), tl.float32)
    for start in range(0, D, STEP):
        d = start + tl.arange(0, STEP)
        x = tl.load(x_at[:, None] + d[None, :], mask=valid[:, None], other=0.0)
        at = ENCODE + columns[:, None] * D + d[None, :]
        if PADDED_ZEROS:
            matrix = tl.load(at)
        else:
            matrix = tl.load(at, mask=inside[:, None], other=0.0)
        if x.dtype == tl.float32:
            y = tl.dot(x, tl.trans(matrix), y, input_precision="tf32x3")
        elif x.dtype == tl.bfloat16:
            leading = matrix.to(tl.bfloat16)
            rest = (matrix - leading.to(tl.float32)).to(tl.bfloat16)
            if UPCAST:
                y = tl.dot(x.to(tl.float32), tl.trans(leading.to(tl.float32)), y)
                y = tl.dot(x.to(tl.float32), tl.trans(rest.to(tl.float32)), y)
            else:
                y = tl.dot(x, tl.trans(leading), y)
                y = tl.dot(x, tl.trans(rest), y)
        else:
            leading = (matrix.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            y = tl.dot(x.to(tl.float32), tl.trans(leading), y, input_precision="tf32")
            y = tl.dot(x.to(tl.float32), tl.trans(matrix - leading), y, input_precision="tf32")
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
    start: tl.constexpr,
    BETWEEN: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    PADDED: tl.constexpr,
    COUNT: tl.constexpr,
    D: tl.constexpr,
    STEP: tl.constexpr,
    T: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Pack a band of `WIDTH`-bit planes into `units` units of type UNIT at `rows: [T]`; its first column is `start`, those of
    a unit's planes lie BETWEEN columns apart."""
    PER: tl.constexpr = UNIT.primitive_bitwidth // WIDTH
    column = tl.arange(0, PER * PADDED)
    plane = column // PADDED
    inside = column % PADDED < units
    if BETWEEN == PADDED:
        columns = start + column
    else:
        columns = start + plane * BETWEEN + column % PADDED
    padded: tl.constexpr = BETWEEN == PADDED
    planes = _planes(x_at, valid, matrices, columns, inside, COUNT, D, STEP, T, PER * PADDED, padded, UPCAST)
    shifted = (planes & (2**WIDTH - 1)) << (plane * WIDTH)[None, :]
    packed = tl.sum(tl.reshape(shifted, (T, PER, PADDED)), axis=1)
    unit = tl.arange(0, PADDED)
    at = rows.to(tl.pointer_type(UNIT))[:, None] + unit[None, :]
    tl.store(at, packed.to(UNIT), mask=valid[:, None] & (unit < units)[None, :])


@triton.jit
def write_row(
    x_at,
    valid,
    rows,
    bands,
    matrices,
    B4: tl.constexpr,
    B2: tl.constexpr,
    B1: tl.constexpr,
    COUNT: tl.constexpr,
    D: tl.constexpr,
    STEP: tl.constexpr,
    T: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Keys or values of some tokens; bands: pointer to the bytes of their three bands."""
    n4 = tl.load(bands)
    n2 = tl.load(bands + 1)
    if B4 > 0:
        _write_band(x_at, valid, rows, n4 // 2, matrices, 0, B4, 4, tl.uint16, B4, COUNT, D, STEP, T, UPCAST)
    if B2 > 0:
        _write_band(x_at, valid, rows + n4, n2, matrices, 4 * B4, B2, 2, tl.uint8, B2, COUNT, D, STEP, T, UPCAST)
    if B1 > 0:
        n1 = tl.load(bands + 2)
        start: tl.constexpr = 4 * B4 + 4 * B2
        _write_band(x_at, valid, rows + n4 + n2, n1, matrices, start, B1, 1, tl.uint8, B1, COUNT, D, STEP, T, UPCAST)


@triton.jit(launch_metadata=_metadata, do_not_specialize=["tokens", "token_bytes", "HK"])
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
    HK,
    D: tl.constexpr,
    KEY_COUNT: tl.constexpr,
    VALUE_COUNT: tl.constexpr,
    K4: tl.constexpr,
    K2: tl.constexpr,
    K1: tl.constexpr,
    V4: tl.constexpr,
    V2: tl.constexpr,
    V1: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
    ROLES: tl.constexpr,
    STEP: tl.constexpr,
    T: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid (N·Hk, tokens / T, ROLES): keys, values and, where there are three roles, the index. K, V: `[N, Hk, tokens, D]`.
    HALF: a power of two, at least RANK / 2. UPCAST: bfloat16 products in float32 (the interpreter's are wrong)."""
    nh = tl.program_id(0).to(tl.int64)
    n = nh // HK
    h = nh % HK
    t = tl.program_id(1) * T + tl.arange(0, T)
    valid = t < tokens
    token = (nh * tokens + t) * D
    slot = 128 - tokens + t
    table = HEADS + h * 9
    page = STORAGE + tl.load(PAGES + n)
    rows = page + tl.load(table) + slot * tl.load(table + 1)
    role = tl.program_id(2)
    if role == 0:
        at = h * KEY_COUNT
        matrices = (KEY_ENCODE + at * D, KEY_OFFSET + at, KEY_TOP + at, KEY_SHIFT + at)
        write_row(K + token, valid, rows, table + 2, matrices, K4, K2, K1, KEY_COUNT, D, STEP, T, UPCAST)
    elif role == 1:
        rows += tl.load(table + 2) + tl.load(table + 3) + tl.load(table + 4)
        at = h * VALUE_COUNT
        matrices = (VALUE_ENCODE + at * D, VALUE_OFFSET + at, VALUE_TOP + at, VALUE_SHIFT + at)
        write_row(V + token, valid, rows, table + 5, matrices, V4, V2, V1, VALUE_COUNT, D, STEP, T, UPCAST)
    elif ROLES == 3:
        at = h * RANK
        matrices = (INDEX_ENCODE + at * D, INDEX_OFFSET + at, INDEX_TOP + at, INDEX_SHIFT + at)
        rows = page + tl.load(table + 8) + slot * (RANK // 2)
        half: tl.constexpr = RANK // 2
        _write_band(K + token, valid, rows, half, matrices, 0, half, 4, tl.uint8, HALF, RANK, D, STEP, T, UPCAST)
