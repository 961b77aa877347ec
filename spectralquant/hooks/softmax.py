"""Softmax attention as this library computes it by itself, and the options that only the model's own function knows.

Handled here: masks, soft-capped scores (`softcap`) and learnt attention sinks (`s_aux`: a logit a head that takes
probability and reads nothing). An option that is not known may mean anything, so a call that has one is left to the
model's own function: nothing that a model asks of its attention is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

HANDLED = frozenset({"softcap", "s_aux"})
WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "labels",
        "logits_to_keep",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "sliding_window",  # masks say it
        "token_type_ids",  # masks say it
        "use_cache",
    }
)


def unknown_option(options: Mapping[str, Any], training: bool = False) -> str | None:
    """An option that changes attention in a way which is not known here, or None."""
    for name, value in options.items():
        if name in HANDLED or name in WITHOUT_EFFECT or value is None or value is False:
            continue
        if name == "dropout" and (not training or not value):
            continue
        if name == "is_causal" and value is True:
            continue
        return name
    if options.get("is_causal") is False:
        return "is_causal"
    return None


def probabilities(scores: Tensor, allowed: Tensor | None, options: Mapping[str, Any]) -> Tensor:
    """Attention probabilities of scaled `scores: [..., H, T, S]` float32 (overwritten); 0 in rows that may read nothing."""
    softcap, sinks = options.get("softcap"), options.get("s_aux")
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if allowed is not None:
        scores = scores.masked_fill_(~allowed, float("-inf"))
    if sinks is not None:
        column = sinks.detach().to(scores).view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    p = scores.softmax(-1)
    return p if allowed is None else torch.nan_to_num_(p)
