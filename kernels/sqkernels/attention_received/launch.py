"""What the host prepares for the kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common.launch import next_power

KEYS, QUERIES = 64, 64


def attention_received(query: Tensor, key: Tensor, lse: Tensor, scaling: float, block: int) -> Tensor:
    """See `api.attention_received`."""
    batch, heads, tokens, dim = query.shape
    from sqkernels.attention_received.triton import received_kernel

    query, key = (t if t.stride(3) == 1 else t.contiguous() for t in (query, key))
    out = torch.empty(batch, heads, tokens, dtype=torch.float32, device=query.device)
    if out.numel():
        received_kernel[(-(-tokens // KEYS), batch * heads)](
            query,
            key,
            lse.contiguous(),
            out,
            tokens,
            heads,
            heads // key.shape[1],
            *query.stride()[:3],
            *key.stride()[:3],
            scaling,
            D=dim,
            DP=max(16, next_power(dim)),
            BLOCK=block,
            KEYS=KEYS,
            QUERIES=QUERIES,
            num_warps=4,
        )
    return out
