"""Attention and what tokens receive from it, in one go.

Importance classes need the attention that each token receives from the queries of its own block and the next
(`cache.compress`). An attention kernel keeps the log-sum-exp of every query; with it one more pass over two blocks a query
gives the sums (`sqkernels.attention_received`), so that nothing of size T² is computed twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.hooks.tap import AttentionCall
from sqkernels.attention_received import attention_received

HALVES = (torch.float16, torch.bfloat16)
MAX_DIM = 256


def attend_and_receive(call: AttentionCall, block: int) -> tuple[Tensor, Tensor] | None:
    """Output `[B, T, H, D]` and attention received float32 `[B, H, T]` (see `attention_received`), or None where no kernel does both.

    That is a causal pass over a whole prompt (nothing before it, no mask) in half precision on a CUDA GPU, with plain softmax.
    """
    if not _plain(call):
        return None
    with torch.no_grad():
        output, lse = _attention(call)
        received = attention_received(call.query, call.key, lse, call.scaling, block)
    return output.transpose(1, 2).contiguous(), received


def _plain(call: AttentionCall) -> bool:
    query, key = call.query, call.key
    return (
        query.is_cuda
        and torch.version.hip is None
        and query.dtype in HALVES
        and key.dtype == query.dtype
        and call.mask is None
        and query.shape[2] == key.shape[2] > 1
        and query.shape[3] == call.value.shape[3] <= MAX_DIM
        and query.shape[3] % 8 == 0
        and not any(call.options.get(name) is not None for name in ("softcap", "s_aux"))
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, call.value)))
        and call.left_to_model() is None
    )


def _attention(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Output `[B, H, T, D]` and the rows' log-sum-exps float32 `[B, H, T]`."""
    if _by_cudnn(call.query):
        result = torch.ops.aten._scaled_dot_product_cudnn_attention(
            call.query, call.key, call.value, None, True, 0.0, True, scale=call.scaling
        )
        return result[0], result[1].view(call.query.shape[:3])
    result = torch.ops.aten._scaled_dot_product_flash_attention(
        call.query, call.key, call.value, 0.0, True, scale=call.scaling
    )
    return result[0], result[1]


def _by_cudnn(query: Tensor) -> bool:
    """Whether cuDNN's kernel is the faster one, as torch itself chooses."""
    return (
        torch.backends.cuda.cudnn_sdp_enabled()
        and torch.cuda.get_device_capability(query.device) >= (9, 0)
        and query.shape[3] <= 128
    )
