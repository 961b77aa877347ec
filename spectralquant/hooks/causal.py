"""Plain causal attention of a prompt with its log-sum-exps: what a token receives then needs only the scores near it."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.hooks.implementation import attention_function
from spectralquant.hooks.tap import AttentionCall


def causal_attention(call: AttentionCall) -> tuple[Tensor, Tensor] | None:
    """Output `[B, T, H, D]`, and the log-sum-exps float32 `[B, H, T]` of the scaled scores, of a whole prompt.

    The kernel is the one that PyTorch's `scaled_dot_product_attention` runs on a CPU, so the output is the model's own to
    the last bit. None where that is not what the model runs: on a GPU, with a mask, an attention of its own, soft-capped
    scores or learnt sinks.
    """
    query, key, value = call.query, call.key, call.value
    plain = call.mask is None and not any(call.options.get(name) is not None for name in ("softcap", "s_aux"))
    whole = query.shape[2] == key.shape[2] and key.shape == value.shape
    if not (plain and whole and query.device.type == "cpu" and attention_function(call.module)[0] == "sdpa"):
        return None
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, True, scale=call.scaling
    )
    return output.transpose(1, 2).contiguous(), sums
