"""Dense latent decode attention: `decode_kernel` attends to the codes in splits, keys and values never materialized.

`common.prepare` runs before it, `common.reduce` after. (m, norm) of a split are its maximum score in base 2 and its sum of
exponentials.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sqkernels.common.device import (
    attend_rows,
    bring,
    empty_state,
    head_bands,
    key_latents,
    start_next,
    store_partial,
    wait_for_previous,
)
from sqkernels.common.traffic import slots
from sqkernels.spectral_decode.traffic import decode_bytes


def _metadata(grid, kernel, args):
    planes = args["PART"].shape[-1] + args["LATENTS"].shape[-1]
    return {
        "name": f"spectral_decode_{args['PAGES'].shape[1] * 128}",
        "bytes": decode_bytes(args),
        "flops16": 2 * slots(args) * args["HK"] * args["G"] * planes,
    }


@triton.jit(launch_metadata=_metadata, do_not_specialize=["n_pages", "token_bytes"])
def decode_kernel(
    STORAGE,
    PAGES,
    FIRST,
    TOKENS,
    HEADS,
    LATENTS,
    CONSTANT,
    PART,
    STATS,
    n_pages,
    token_bytes,
    HK: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
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
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (B·Hk, splits). PAGES: int64 `[B, n_pages]`. PART: float32 `[B·Hk, splits, G, planes]`,
    STATS: `[B·Hk, splits, 2, 16]`. N: 8 or 16, at least G. AHEAD: tiles whose codes are brought to the level-2 cache while
    the preparation runs; all that is read before the wait is older than the preparation, which waits itself."""
    bh = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    b = bh // HK
    h = bh % HK
    PLANES: tl.constexpr = 4 * K4 + 4 * K2 + 8 * K1
    VALUE_PLANES: tl.constexpr = 4 * V4 + 4 * V2 + 8 * V1
    offset, row_bytes, bands = head_bands(HEADS, h, UNIFORM, ALIGN, ROW, BANDS)
    first = tl.load(FIRST + b)
    end = first + tl.load(TOKENS + b)
    TILES: tl.constexpr = 128 // BLOCK
    per = tl.cdiv(tl.cdiv(end, 128), splits) * TILES
    last = tl.minimum((split + 1) * per, tl.cdiv(end, BLOCK))
    if OVERLAP and AHEAD > 0:
        for tile in range(split * per, tl.minimum(last, split * per + AHEAD)):
            page = tl.load(PAGES + b * n_pages + tile // TILES)
            bring(STORAGE + page + offset + (tile % TILES) * BLOCK * row_bytes, BLOCK * row_bytes, BLOCK)
    wait_for_previous(OVERLAP)
    latents, key_offset = key_latents(LATENTS + bh * 16 * PLANES, K4, K2, K1, N)
    constant = tl.load(CONSTANT + bh * 16 + tl.arange(0, N)) - key_offset
    state = empty_state(V4, V2, V1, N)
    for tile in tl.range(split * per, last, num_stages=STAGES):
        page = tl.multiple_of(tl.load(PAGES + b * n_pages + tile // TILES), 16)
        slot = tile * BLOCK + tl.arange(0, BLOCK)
        inside = (tile % TILES) * BLOCK + tl.arange(0, BLOCK)
        rows = STORAGE + page + offset + inside * row_bytes
        valid = (slot >= first) & (slot < end)
        state = attend_rows(
            state, latents, constant, rows, valid, bands, K4, K2, K1, V4, V2, V1, FULL, BLOCK, N, ASSEMBLY
        )
    start_next(OVERLAP)
    part = PART + (bh * splits + split) * G * VALUE_PLANES
    store_partial(state, part, STATS + (bh * splits + split) * 32, G, V4, V2, V1, N)
