"""Device functions that the attention kernels share.

Shape letters: M query rows of one key/value head (the group, padded to 16), T tokens of a tile, n planes.
A dot's operands are float16 (codes minus their centre are exact there) and its sums float32; bfloat16 dots are avoided
because Triton's interpreter gets them wrong.
"""

import triton
import triton.language as tl

# Four bytes at once: nibbles become the low mantissa bits of 1024.0, from which 1032 is taken away (13 instructions for
# eight nibbles, against about 40 for shifts, masks and conversions one by one).
_NIBBLES: tl.constexpr = tl.constexpr("""
{
.reg .b32 t, c, k;
mov.b32 c, 0x64646464;
mov.b32 k, 0x64086408;
prmt.b32 t, $4, c, 0x4140;
and.b32 t, t, 0xFF0FFF0F;
sub.f16x2 $0, t, k;
prmt.b32 t, $4, c, 0x4342;
and.b32 t, t, 0xFF0FFF0F;
sub.f16x2 $1, t, k;
shr.b32 t, $4, 4;
prmt.b32 $2, t, c, 0x4140;
prmt.b32 $3, t, c, 0x4342;
and.b32 $2, $2, 0xFF0FFF0F;
and.b32 $3, $3, 0xFF0FFF0F;
sub.f16x2 $2, $2, k;
sub.f16x2 $3, $3, k;
}
""")


@triton.jit
def unpack4(raw, ASSEMBLY: tl.constexpr):
    """Low and high nibbles minus 8 as float16, of bytes `raw`."""
    if ASSEMBLY:
        low, high = tl.inline_asm_elementwise(
            _NIBBLES,
            "=&r,=&r,=&r,=&r,r",
            [raw],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )
    else:
        low = (raw & 15).to(tl.float16) - 8.0
        high = (raw >> 4).to(tl.float16) - 8.0
    return low, high


@triton.jit
def unpack_small(raw, WIDTH: tl.constexpr, TOKENS: tl.constexpr, BYTES: tl.constexpr):
    """Planes of 1 or 2 bits minus their centre, float16 `[T, BYTES · 8 / WIDTH]`, of `raw: [T, BYTES]`."""
    PER: tl.constexpr = 8 // WIDTH
    shift = (tl.arange(0, PER) * WIDTH).to(tl.uint8)
    planes = (raw[:, None, :] >> shift[None, :, None]) & (2**WIDTH - 1)
    centred = planes.to(tl.float16) - (2**WIDTH - 1) * 0.5
    return tl.reshape(centred, (TOKENS, PER * BYTES))


@triton.jit
def load_query(Q, rows, first, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """Query rows float32 `[M, DP]` of one key/value head; `first` is the offset of its first row."""
    d = tl.arange(0, DP)
    inside = (rows[:, None] < G) & (d[None, :] < D)
    return tl.load(Q + first + rows[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def latent(query, DECODE, start, COUNT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """query · decode of `COUNT` planes from `start` on: float32 `[M, COUNT]`."""
    d = tl.arange(0, DP)
    n = start + tl.arange(0, COUNT)
    matrix = tl.load(DECODE + n[:, None] * D + d[None, :], mask=d[None, :] < D, other=0.0)
    return tl.dot(query, tl.trans(matrix))


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

    Inputs of at most 11 significant bits go through tf32 without loss.
    """
    d = tl.arange(0, DP)
    for start in range(0, count, BLOCK):
        t = start + tl.arange(0, BLOCK)
        inside = (t[:, None] < count) & (d[None, :] < D)
        at = first + t[:, None] * D + d[None, :]
        keys = tl.load(K + at, mask=inside, other=0.0).to(tl.float32)
        scores = tl.dot(query, tl.trans(keys)) * scale
        scores = tl.where((t < count)[None, :], scores, float("-inf"))
        m, factor, p, norm = softmax_step(scores, m, norm)
        values = tl.load(V + at, mask=inside, other=0.0).to(tl.float32)
        acc = tl.dot(p, values, acc * factor[:, None])
    return m, norm, acc


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
    ASSEMBLY: tl.constexpr,
):
    """Attend to the codes of `BLOCK` tokens.

    state: (m, norm, a4low, a4high, a2, a1). latents: (q4low, q4high, q2, q1) float16 and scaled. rows: pointers `[T]` to
    the tokens' rows. bands: bytes of the six bands. FULL: every band is as wide as its padded width.
    """
    m, norm, a4low, a4high, a2, a1 = state
    q4low, q4high, q2, q1 = latents
    k4, k2, k1, v4, v2, v1 = bands
    scores = constant[:, None] + tl.zeros((16, BLOCK), tl.float32)
    if K4 > 0:
        low, high = unpack4(_band(rows, 0, k4, K4, FULL), ASSEMBLY)
        scores = tl.dot(q4low, tl.trans(low), scores)
        scores = tl.dot(q4high, tl.trans(high), scores)
    if K2 > 0:
        planes = unpack_small(_band(rows, k4, k2, K2, FULL), 2, BLOCK, K2)
        scores = tl.dot(q2, tl.trans(planes), scores)
    if K1 > 0:
        planes = unpack_small(_band(rows, k4 + k2, k1, K1, FULL), 1, BLOCK, K1)
        scores = tl.dot(q1, tl.trans(planes), scores)
    scores = tl.where(valid[None, :], scores, float("-inf"))
    m, factor, p, norm = softmax_step(scores, m, norm)
    p = p.to(tl.float16)
    key = k4 + k2 + k1
    if V4 > 0:
        low, high = unpack4(_band(rows, key, v4, V4, FULL), ASSEMBLY)
        a4low = tl.dot(p, low, a4low * factor[:, None])
        a4high = tl.dot(p, high, a4high * factor[:, None])
    if V2 > 0:
        a2 = tl.dot(p, unpack_small(_band(rows, key + v4, v2, V2, FULL), 2, BLOCK, V2), a2 * factor[:, None])
    if V1 > 0:
        a1 = tl.dot(p, unpack_small(_band(rows, key + v4 + v2, v1, V1, FULL), 1, BLOCK, V1), a1 * factor[:, None])
    return m, norm, a4low, a4high, a2, a1


@triton.jit
def _band(rows, start, nbytes, PADDED: tl.constexpr, FULL: tl.constexpr):
    """Bytes `[T, PADDED]` of one band."""
    column = tl.arange(0, PADDED)
    at = rows[:, None] + (start + column)[None, :]
    if FULL:
        return tl.load(tl.max_contiguous(tl.multiple_of(at, (1, 16)), (1, 16)))
    return tl.load(at, mask=(column < nbytes)[None, :], other=0)


@triton.jit
def store_latents(
    query, DECODE, LATENTS, start, scale, PLANES: tl.constexpr, COUNT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr
):
    """Write `COUNT` columns of the query in the coordinates of the key planes, times `scale`: float16 `[16, PLANES]`."""
    found = latent(query, DECODE, start, COUNT, D, DP) * scale
    column = start + tl.arange(0, COUNT)
    tl.store(LATENTS + tl.arange(0, 16)[:, None] * PLANES + column[None, :], found.to(tl.float16))


@triton.jit
def load_latents(LATENTS, K4: tl.constexpr, K2: tl.constexpr, K1: tl.constexpr):
    """(q4low, q4high, q2, q1) float16, as `store_latents` wrote them; 0.0 for bands that are not there."""
    PLANES: tl.constexpr = 2 * K4 + 4 * K2 + 8 * K1
    row = LATENTS + tl.arange(0, 16)[:, None] * PLANES
    low = 0.0
    high = 0.0
    q2 = 0.0
    q1 = 0.0
    if K4 > 0:
        low = tl.load(row + tl.arange(0, K4)[None, :])
        high = tl.load(row + K4 + tl.arange(0, K4)[None, :])
    if K2 > 0:
        q2 = tl.load(row + 2 * K4 + tl.arange(0, 4 * K2)[None, :])
    if K1 > 0:
        q1 = tl.load(row + 2 * K4 + 4 * K2 + tl.arange(0, 8 * K1)[None, :])
    return low, high, q2, q1


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
def empty_state(V4: tl.constexpr, V2: tl.constexpr, V1: tl.constexpr):
    """(m, norm, a4low, a4high, a2, a1) before any token."""
    m = tl.full((16,), float("-inf"), tl.float32)
    norm = tl.zeros((16,), tl.float32)
    low = 0.0
    high = 0.0
    a2 = 0.0
    a1 = 0.0
    if V4 > 0:
        low = tl.zeros((16, V4), tl.float32)
        high = tl.zeros((16, V4), tl.float32)
    if V2 > 0:
        a2 = tl.zeros((16, 4 * V2), tl.float32)
    if V1 > 0:
        a1 = tl.zeros((16, 8 * V1), tl.float32)
    return m, norm, low, high, a2, a1


@triton.jit
def store_partial(state, PART, STATS, G: tl.constexpr, V4: tl.constexpr, V2: tl.constexpr, V1: tl.constexpr):
    """Write one split's sums over value planes `[G, planes]` and its (m, norm) `[2, 16]`."""
    m, norm, low, high, a2, a1 = state
    row = tl.arange(0, 16)
    PLANES: tl.constexpr = 2 * V4 + 4 * V2 + 8 * V1
    tl.store(STATS + row, m)
    tl.store(STATS + 16 + row, norm)
    if V4 > 0:
        column = tl.arange(0, V4)
        at = PART + row[:, None] * PLANES + column[None, :]
        tl.store(at, low, mask=(row < G)[:, None])
        tl.store(at + V4, high, mask=(row < G)[:, None])
    if V2 > 0:
        column = 2 * V4 + tl.arange(0, 4 * V2)
        tl.store(PART + row[:, None] * PLANES + column[None, :], a2, mask=(row < G)[:, None])
    if V1 > 0:
        column = 2 * V4 + 4 * V2 + tl.arange(0, 8 * V1)
        tl.store(PART + row[:, None] * PLANES + column[None, :], a1, mask=(row < G)[:, None])


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
