"""A program takes a block of keys of one head, and goes over the queries of its own block and the next."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens"])
def received_kernel(
    Q,
    K,
    LSE,
    OUT,
    tokens,
    heads,
    group,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    scaling,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """Grid (tiles of `KEYS` keys, batch · heads). Q: `[B, H, T, D]`, K: `[B, Hk, T, D]`, LSE and OUT: float32 `[B, H, T]`. A block
    is a whole number of tiles."""
    tile = tl.program_id(0)
    row = tl.program_id(1)
    batch, head = row // heads, row % heads
    q = Q + batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head
    k = K + batch.to(tl.int64) * k_batch + (head // group).to(tl.int64) * k_head
    lse = LSE + row.to(tl.int64) * tokens
    d = tl.arange(0, DP)
    key = tile * KEYS + tl.arange(0, KEYS)
    kt = tl.load(
        k + key.to(tl.int64)[None, :] * k_token + d[:, None], mask=(key < tokens)[None, :] & (d < D)[:, None], other=0.0
    )
    total = tl.zeros([KEYS], dtype=tl.float32)
    first = tile * KEYS
    stop = tl.minimum(tokens, (first // BLOCK + 2) * BLOCK)
    for start in range(first, stop, QUERIES):
        query = start + tl.arange(0, QUERIES)
        live = query < stop
        qs = tl.load(
            q + query.to(tl.int64)[:, None] * q_token + d[None, :], mask=live[:, None] & (d < D)[None, :], other=0.0
        )
        scores = tl.dot(qs, kt) * scaling
        norm = tl.load(lse + query, mask=live, other=0.0)
        p = tl.exp(scores - norm[:, None])
        later = live[:, None] & (query[:, None] > key[None, :])
        total += tl.sum(tl.where(later, p, 0.0), 0)
    tl.store(OUT + row.to(tl.int64) * tokens + key, total, mask=key < tokens)
