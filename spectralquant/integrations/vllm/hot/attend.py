"""Attention over hot rows in plain torch: what is older than this step is read from codes, this step's tokens are exact."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from spectralquant.integrations.vllm.hot.rows import HotRows


def attend(
    rows: HotRows,
    layer: int,
    pages: Tensor,
    query: Tensor,
    new: tuple[Tensor, Tensor],
    starts: Sequence[int],
    lengths: Sequence[int],
    table: Tensor,
    scale: float,
) -> Tensor:
    """`[T, H, D]` of queries `[T, H, D]` of some requests, one after the other.

    pages: uint8 `[B, N, row_bytes]`. new: this step's keys and values `[T, Hk, D]`. starts: first query of each request, and T.
    lengths: tokens of each request, this step's included. table: pages of each request `[R, n]`.
    """
    out = torch.empty_like(query)
    for request, length in enumerate(lengths):
        some = slice(starts[request], starts[request + 1])
        count = some.stop - some.start
        if not count:
            continue
        old = length - count
        keys, values = (x[some].float() for x in new)
        if old:
            held = pages[table[request, : -(-old // rows.block)].long()]
            both = zip(rows.read(layer, held), (keys, values), strict=True)
            keys, values = (torch.cat([before[:old], x]) for before, x in both)
        mask = torch.ones(count, length, dtype=torch.bool, device=query.device).tril_(old)
        result = functional.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in (query[some].float(), keys, values)),
            attn_mask=mask,
            scale=scale,
            enable_gqa=True,
        )
        out[some] = result[0].transpose(0, 1).to(out.dtype)
    return out
