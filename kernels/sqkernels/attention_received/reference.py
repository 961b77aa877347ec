"""The same in torch, block by block."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_received(query: Tensor, key: Tensor, lse: Tensor, scaling: float, block: int) -> Tensor:
    """See `api.attention_received`."""
    batch, heads, tokens, _ = query.shape
    key = key.float().repeat_interleave(heads // key.shape[1], dim=1)
    out = torch.zeros(batch, heads, tokens, dtype=torch.float32, device=query.device)
    place = torch.arange(tokens, device=query.device)
    for start in range(0, tokens, block):
        stop, last = min(tokens, start + block), min(tokens, start + 2 * block)
        scores = query[:, :, start:last].float() @ key[:, :, start:stop].transpose(2, 3) * scaling
        p = torch.exp(scores - lse[:, :, start:last, None])
        later = place[start:last, None] > place[None, start:stop]
        out[:, :, start:stop] = (p * later).sum(2)
    return out
