"""Device functions that the attention kernels share.

Shape letters: M query rows of one key/value head (the group, padded to 16), N the same padded to 8 or 16, T tokens of a
tile. Codes are read with tokens as the long side of every product, so that few query rows waste little of a matrix
unit. A dot's operands are float16 (plane values are exact there) and its sums float32; bfloat16 dots are avoided because
Triton's interpreter gets them wrong.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sqkernels.common.unpack import load_bytes, load_columns, load_words, unpack4, unpack4_centred, unpack_small


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Wait until the kernels before this one are done and their writes seen.

    What a kernel reads before it waits must not come from the launch before it: with every kernel of a chain waiting,
    all older ones are done.
    """
    if OVERLAP:
        gdc_wait()


@triton.jit
def start_next(OVERLAP: tl.constexpr):
    """Let the next kernel be launched once all programs are here. A program launched early takes a place that the
    kernel before it would have, and finds processors unevenly filled: the later the better, unless it has work meanwhile.
    """
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def bring(start, nbytes, LINES: tl.constexpr):
    """Have `nbytes` bytes from `start` on brought to the level-2 cache, `LINES` lines of 128 bytes an instruction.

    A program that waits for the kernel before it (`wait_for_previous`) lets memory work meanwhile.
    """
    line = tl.arange(0, LINES) * 128
    for begin in range(0, nbytes, 128 * LINES):
        at = (start + tl.minimum(begin + line, nbytes - 1)).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def load_query(Q, rows, first, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """Query rows float32 `[M, DP]` of one key/value head; `first` is the offset of its first row."""
    d = tl.arange(0, DP)
    inside = (rows[:, None] < G) & (d[None, :] < D)
    return tl.load(Q + first + rows[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def latent(query, DECODE, start, COUNT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PRECISION: tl.constexpr):
    """query · decode of `COUNT` planes from `start` on: float32 `[M, COUNT]`."""
    d = tl.arange(0, DP)
    n = start + tl.arange(0, COUNT)
    matrix = tl.load(DECODE + n[:, None] * D + d[None, :], mask=d[None, :] < D, other=0.0)
    return tl.dot(query, tl.trans(matrix), input_precision=PRECISION)


@triton.jit
def constant_score(query, CONSTANT, D: tl.constexpr, DP: tl.constexpr):
    """query · constant: float32 `[M]`."""
    d = tl.arange(0, DP)
    return tl.sum(query * tl.load(CONSTANT + d, mask=d < D, other=0.0)[None, :], axis=1)


@triton.jit
def softmax_step(scores, m, norm):
    """New maximum, its rescaling factor, probabilities and sum of `scores: [M, T]` in base 2."""
    new = tl.maximum(m, tl.max(scores, axis=1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    factor = tl.exp2(m - safe)
    p = tl.exp2(scores - safe[:, None])
    return new, factor, p, norm * factor + tl.sum(p, axis=1)


@triton.jit
def attend_exact(
    query, m, norm, acc, K, V, first, count, scale, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr
):
    """Attend to `count` exact tokens whose keys and values start at offset `first`; scale includes log2(e).

    Inputs of at most 11 significant bits go through tf32 without loss; float32 ones take three products.
    """
    PRECISION: tl.constexpr = "tf32x3" if K.dtype.element_ty == tl.float32 else "tf32"
    d = tl.arange(0, DP)
    for start in range(0, count, BLOCK):
        t = start + tl.arange(0, BLOCK)
        inside = (t[:, None] < count) & (d[None, :] < D)
        at = first + t[:, None] * D + d[None, :]
        keys = tl.load(K + at, mask=inside, other=0.0).to(tl.float32)
        scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
        scores = tl.where((t < count)[None, :], scores, float("-inf"))
        m, factor, p, norm = softmax_step(scores, m, norm)
        values = tl.load(V + at, mask=inside, other=0.0).to(tl.float32)
        acc = tl.dot(p, values, acc * factor[:, None], input_precision=PRECISION)
    return m, norm, acc


@triton.jit
def key_latents(LATENTS, K4: tl.constexpr, K2: tl.constexpr, K1: tl.constexpr, N: tl.constexpr):
    """((q0, q1, q2, q3, q2bit, q1bit), offset): latents as `store_latents` wrote them, float16 `[planes, N]` (0.0 for bands
    that are not there), of nibbles 1 and 3 a 16th; and what the offsets of `unpack4` add to a score, float32 `[N]`."""
    PLANES: tl.constexpr = 4 * K4 + 4 * K2 + 8 * K1
    row = LATENTS + tl.arange(0, N)[None, :] * PLANES
    q0 = 0.0
    q1 = 0.0
    q2 = 0.0
    q3 = 0.0
    two = 0.0
    one = 0.0
    offset = tl.zeros((N,), tl.float32)
    if K4 > 0:
        unit = tl.arange(0, K4)[:, None]
        q0 = tl.load(row + unit)
        q1 = (tl.load(row + K4 + unit) * 0.0625).to(tl.float16)
        q2 = tl.load(row + 2 * K4 + unit)
        q3 = (tl.load(row + 3 * K4 + unit) * 0.0625).to(tl.float16)
        offset += tl.sum(q0.to(tl.float32) + q2.to(tl.float32), axis=0) * 1032.0
        offset += tl.sum(q1.to(tl.float32) + q3.to(tl.float32), axis=0) * 1152.0
    if K2 > 0:
        two = tl.load(row + 4 * K4 + tl.arange(0, 4 * K2)[:, None])
    if K1 > 0:
        one = tl.load(row + 4 * K4 + 4 * K2 + tl.arange(0, 8 * K1)[:, None])
    return (q0, q1, q2, q3, two, one), offset


@triton.jit
def attend_rows(
    state,
    latents,
    constant,
    rows,
    valid,
    bands,
    K4: tl.constexpr,
    K2: tl.constexpr,
    K1: tl.constexpr,
    V4: tl.constexpr,
    V2: tl.constexpr,
    V1: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
    N: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Attend to the codes of `BLOCK` tokens.

    state: (m, norm `[N]`, sums of value planes `[planes, N]` by nibble and band). latents: of `key_latents`, scaled.
    constant: `[N]`, what every score has besides. rows: pointers `[T]` to the tokens' rows. bands: bytes of the six bands.
    FULL: every band is as wide as its padded width.
    """
    m, norm, a0, a1, a2, a3, two, one = state
    q0, q1, q2, q3, q_two, q_one = latents
    k4, k2, k1, v4, v2, v1 = bands
    scores = tl.zeros((BLOCK, N), tl.float32) + constant[None, :]
    if K4 > 0:
        n0, n1, n2, n3 = unpack4(load_words(rows, 0, k4, K4, FULL), ASSEMBLY)
        scores = tl.dot(n0, q0, scores)
        scores = tl.dot(n1, q1, scores)
        scores = tl.dot(n2, q2, scores)
        scores = tl.dot(n3, q3, scores)
    if K2 > 0:
        scores = tl.dot(unpack_small(load_bytes(rows, k4, k2, K2, FULL), 2, BLOCK, K2), q_two, scores)
    if K1 > 0:
        scores = tl.dot(unpack_small(load_bytes(rows, k4 + k2, k1, K1, FULL), 1, BLOCK, K1), q_one, scores)
    scores = tl.where(valid[:, None], scores, float("-inf"))
    top = tl.maximum(m, tl.max(scores, axis=0))
    safe = tl.where(top == float("-inf"), 0.0, top)
    factor = tl.exp2(m - safe)
    p = tl.exp2(scores - safe[None, :]).to(tl.float16)
    norm = norm * factor + tl.sum(p.to(tl.float32), axis=0)
    key = k4 + k2 + k1
    if V4 > 0:
        n0, n1, n2, n3 = unpack4_centred(load_columns(rows, key, v4, V4, FULL), ASSEMBLY)
        a0 = tl.dot(n0, p, a0 * factor[None, :])
        a1 = tl.dot(n1, p, a1 * factor[None, :])
        a2 = tl.dot(n2, p, a2 * factor[None, :])
        a3 = tl.dot(n3, p, a3 * factor[None, :])
    if V2 > 0:
        planes = unpack_small(load_bytes(rows, key + v4, v2, V2, FULL), 2, BLOCK, V2)
        two = tl.dot(tl.trans(planes), p, two * factor[None, :])
    if V1 > 0:
        planes = unpack_small(load_bytes(rows, key + v4 + v2, v1, V1, FULL), 1, BLOCK, V1)
        one = tl.dot(tl.trans(planes), p, one * factor[None, :])
    return top, norm, a0, a1, a2, a3, two, one


@triton.jit
def store_latents(
    query,
    DECODE,
    LATENTS,
    start,
    scale,
    PLANES: tl.constexpr,
    COUNT: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write `COUNT` columns of the query in the coordinates of the key planes, times `scale`: float16 `[16, PLANES]`."""
    latents = latent(query, DECODE, start, COUNT, D, DP, PRECISION) * scale
    column = start + tl.arange(0, COUNT)
    tl.store(LATENTS + tl.arange(0, 16)[:, None] * PLANES + column[None, :], latents.to(tl.float16))


@triton.jit
def exact_part(
    query,
    SK,
    SV,
    WK,
    WV,
    part,
    stats,
    bh,
    begin,
    end,
    scale,
    sinks,
    window,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Window tokens begin … end of one key/value head, and the sinks where begin is 0: writes sums `[G, D]` and (m, norm)
    `[2, 16]`."""
    row = tl.arange(0, 16)
    d = tl.arange(0, DP)
    m = tl.full((16,), float("-inf"), tl.float32)
    norm = tl.zeros((16,), tl.float32)
    acc = tl.zeros((16, DP), tl.float32)
    if begin == 0:
        m, norm, acc = attend_exact(query, m, norm, acc, SK, SV, bh * sinks * D, sinks, scale, D, DP, 16)
    start = (bh * window + begin) * D
    m, norm, acc = attend_exact(query, m, norm, acc, WK, WV, start, end - begin, scale, D, DP, BLOCK)
    tl.store(stats + row, m)
    tl.store(stats + 16 + row, norm)
    tl.store(part + row[:, None] * D + d[None, :], acc, mask=(row < G)[:, None] & (d < D)[None, :])


@triton.jit
def empty_state(V4: tl.constexpr, V2: tl.constexpr, V1: tl.constexpr, N: tl.constexpr):
    """(m, norm, sums by nibble, sums of 2-bit and of 1-bit planes) before any token."""
    m = tl.full((N,), float("-inf"), tl.float32)
    norm = tl.zeros((N,), tl.float32)
    a0 = 0.0
    a1 = 0.0
    a2 = 0.0
    a3 = 0.0
    two = 0.0
    one = 0.0
    if V4 > 0:
        a0 = tl.zeros((V4, N), tl.float32)
        a1 = tl.zeros((V4, N), tl.float32)
        a2 = tl.zeros((V4, N), tl.float32)
        a3 = tl.zeros((V4, N), tl.float32)
    if V2 > 0:
        two = tl.zeros((4 * V2, N), tl.float32)
    if V1 > 0:
        one = tl.zeros((8 * V1, N), tl.float32)
    return m, norm, a0, a1, a2, a3, two, one


@triton.jit
def store_partial(
    state, PART, STATS, G: tl.constexpr, V4: tl.constexpr, V2: tl.constexpr, V1: tl.constexpr, N: tl.constexpr
):
    """Write one split's sums over value planes `[G, planes]` and its (m, norm) `[2, 16]`."""
    m, norm, a0, a1, a2, a3, two, one = state
    row = tl.arange(0, N)
    PLANES: tl.constexpr = 4 * V4 + 4 * V2 + 8 * V1
    tl.store(STATS + row, m)
    tl.store(STATS + 16 + row, norm)
    if V4 > 0:
        _store_planes(a0, PART, G, PLANES, V4, N)
        _store_planes(a1, PART + V4, G, PLANES, V4, N)
        _store_planes(a2, PART + 2 * V4, G, PLANES, V4, N)
        _store_planes(a3, PART + 3 * V4, G, PLANES, V4, N)
    if V2 > 0:
        _store_planes(two, PART + 4 * V4, G, PLANES, 4 * V2, N)
    if V1 > 0:
        _store_planes(one, PART + 4 * V4 + 4 * V2, G, PLANES, 8 * V1, N)


@triton.jit
def _store_planes(sums, PART, G: tl.constexpr, PLANES: tl.constexpr, COUNT: tl.constexpr, N: tl.constexpr):
    row = tl.arange(0, N)
    tl.store(PART + row[None, :] * PLANES + tl.arange(0, COUNT)[:, None], sums, mask=(row < G)[None, :])


@triton.jit
def head_bands(HEADS, h, UNIFORM: tl.constexpr, ALIGN: tl.constexpr, ROW: tl.constexpr, BANDS: tl.constexpr):
    """(offset of the head's rows in a page, bytes of a row, the six bands' bytes)."""
    table = HEADS + h * 9
    offset = tl.multiple_of(tl.load(table), 128)
    if UNIFORM:
        return offset, ROW, (BANDS[0], BANDS[1], BANDS[2], BANDS[3], BANDS[4], BANDS[5])
    row = tl.multiple_of(tl.load(table + 1), ALIGN)
    k4 = tl.multiple_of(tl.load(table + 2), ALIGN)
    k2 = tl.multiple_of(tl.load(table + 3), ALIGN)
    k1 = tl.multiple_of(tl.load(table + 4), ALIGN)
    v4 = tl.multiple_of(tl.load(table + 5), ALIGN)
    v2 = tl.multiple_of(tl.load(table + 6), ALIGN)
    v1 = tl.multiple_of(tl.load(table + 7), ALIGN)
    return offset, row, (k4, k2, k1, v4, v2, v1)
