"""Attention of a chunk of a prompt: its own tokens exactly, those before it from pages, a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectralquant.integrations.vllm.hot.gpu_pages import HotPages, Sequences

PIECE = 8192  # tokens of keys and values that are decoded at once
Dense = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def attend_chunk(
    hot: HotPages,
    layer: int,
    pages: Tensor,
    query: Tensor,
    new: tuple[Tensor, Tensor],
    sequence: Sequences,
    before: int,
    dense: Dense,
) -> Tensor:
    """`[T, H, D]` of queries `[T, H, D]` of one sequence, with `before` tokens in its pages before them.

    new: keys and values `[T, Hk, D]` of the chunk. dense: attention of queries, keys, values and whether it is causal: output `[T, H, D]`
    and log-sum-exp `[H, T]`.
    """
    out, weight = dense(query, *new, True)
    if not before:
        return out
    total, weight = out.float(), weight.transpose(0, 1)[..., None].float()
    for first in range(0, before, PIECE):
        keys, values = hot.read(layer, pages, sequence, first, min(PIECE, before - first), query.dtype)
        part, other = dense(query, keys, values, False)
        other = other.transpose(0, 1)[..., None].float()
        both = torch.logaddexp(weight, other)
        total = total * (weight - both).exp() + part.float() * (other - both).exp()
        weight = both
    return total.to(query.dtype)


def plain_dense(scale: float) -> Dense:
    """In plain torch; what the engine's own kernel is held against."""

    def dense(query: Tensor, keys: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        heads = query.shape[1] // keys.shape[1]
        q, k, v = (x.transpose(0, 1).float() for x in (query, keys, values))
        k, v = (x.repeat_interleave(heads, 0) for x in (k, v))
        scores = q @ k.transpose(1, 2) * scale
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), float("-inf"))
        return (scores.softmax(-1) @ v).transpose(0, 1).to(query.dtype), scores.logsumexp(-1)

    return dense
