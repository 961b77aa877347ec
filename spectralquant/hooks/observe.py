"""What an attention call tells about its tokens: entropy of its queries, attention that its keys receive."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.causal import causal_attention
from spectralquant.hooks.softmax import probabilities
from spectralquant.hooks.tap import AttentionCall

ENTROPY_STRIDE = 8


def attention_entropy(call: AttentionCall) -> Tensor:
    """Entropy `[H]` in nats of the attention distribution, averaged over every eighth query."""
    _require_known(call)
    p = _probabilities(call, slice(0, None, ENTROPY_STRIDE), call.key.shape[2])
    return -(p * p.clamp_min(1e-20).log()).sum(-1).mean(-1)


def attention_received(call: AttentionCall, block: int, sums: Tensor | None = None) -> Tensor:
    """Attention `[H, T]` each token receives from later queries (itself left out) in its own and the next block.

    This is what a streaming cache knows of a token when its block leaves the recent window. sums: log-sum-exps `[H, T]` of
    sequence 0's scores, where they are known (`causal_attention`); the time is linear in the tokens with them.
    """
    _require_known(call)
    total = call.query.shape[2]
    received = call.query.new_zeros(call.query.shape[1], total, dtype=torch.float32)
    if sums is None and (attended := causal_attention(call)) is not None:
        sums = attended[1][0]
    for start in range(0, total, block):
        stop, first = min(start + block, total), max(0, start - block)
        if sums is None:
            reach = stop if call.mask is None and call.key.shape[2] == total else call.key.shape[2]
            p = _probabilities(call, slice(start, stop), reach)[..., first:stop]
        else:
            p = (_scores(call, slice(start, stop), slice(first, stop)) - sums[:, start:stop, None]).exp_()
        received[:, first:stop] += p.tril_(start - first - 1).sum(1)
    return received


def _require_known(call: AttentionCall) -> None:
    """Refuse a call whose probabilities only the model's own function knows.

    Raises:
        UnsupportedModelError: naming the reason.
    """
    if (why := call.left_to_model(dropout=False)) is not None:
        raise UnsupportedModelError(
            f"What tokens receive in layer {call.layer} cannot be told: {why}. Calibrate and pack with the attention the "
            'model comes with (attn_implementation="sdpa" or "eager").'
        )


def _scores(call: AttentionCall, queries: slice, keys: slice) -> Tensor:
    """Scaled scores float32 `[H, q, s]` of some queries and keys of sequence 0."""
    group = call.query.shape[1] // call.key.shape[1]
    query = call.query[0, :, queries].detach().float()
    heads, count, dim = query.shape
    key = call.key[0, :, keys].detach().float()
    return (query.reshape(-1, group * count, dim) @ key.transpose(1, 2)).view(heads, count, -1) * call.scaling


def _probabilities(call: AttentionCall, queries: slice, reach: int) -> Tensor:
    """Attention probabilities float32 `[H, q, reach]` of some queries of sequence 0, none of which reads further."""
    allowed = call.allowed(queries)[0, :, :, :reach]
    return probabilities(_scores(call, queries, slice(reach)), allowed, call.options)
