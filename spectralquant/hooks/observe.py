"""What an attention call tells about its tokens: entropy of its queries, attention that its keys receive."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.softmax import probabilities
from spectralquant.hooks.tap import AttentionCall

ENTROPY_STRIDE = 8


def _probabilities(call: AttentionCall, queries: slice) -> Tensor:
    """Attention probabilities `[H, q, S]` in float32 of a slice of the queries of sequence 0.

    Raises:
        UnsupportedModelError: only the model's own function knows them.
    """
    if (why := call.left_to_model(dropout=False)) is not None:
        raise UnsupportedModelError(
            f"What tokens receive in layer {call.layer} cannot be told: {why}. Calibrate and pack with the attention the "
            'model comes with (attn_implementation="sdpa" or "eager").'
        )
    group = call.query.shape[1] // call.key.shape[1]
    query = call.query[0, :, queries].detach().float()
    heads, count, dim = query.shape
    key = call.key[0].detach().float()
    scores = (query.reshape(-1, group * count, dim) @ key.transpose(1, 2)).view(heads, count, -1) * call.scaling
    return probabilities(scores, call.allowed()[0, :, queries], call.options)


def attention_entropy(call: AttentionCall) -> Tensor:
    """Entropy `[H]` in nats of the attention distribution, averaged over every eighth query."""
    p = _probabilities(call, slice(0, None, ENTROPY_STRIDE))
    return -(p * p.clamp_min(1e-20).log()).sum(-1).mean(-1)


def attention_received(call: AttentionCall, block: int) -> Tensor:
    """Attention `[H, T]` each token receives from later queries (itself left out) in its own and the next block.

    This is what a streaming cache knows of a token when its block leaves the recent window.
    """
    total = call.query.shape[2]
    received = call.query.new_zeros(call.query.shape[1], total, dtype=torch.float32)
    for start in range(0, total, block):
        stop = min(start + block, total)
        first = max(0, start - block)
        p = _probabilities(call, slice(start, stop))[..., first:stop]
        index = torch.arange(start - first, stop - first, device=p.device)
        p[:, torch.arange(stop - start, device=p.device), index] = 0
        received[:, first:stop] += p.sum(1)
    return received
