"""What neither hot backend reads."""

from __future__ import annotations

from typing import Any

from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionType

from spectralquant.errors import InputError


def refuse(
    alibi_slopes: Any,
    sliding_window: Any,
    kv_cache_dtype: str,
    logits_soft_cap: float | None,
    attn_type: str,
    kv_sharing_target_layer_name: str | None,
    sinks: Any,
) -> None:
    """Arguments of an attention layer, as vLLM names them.

    Raises:
        InputError: the layer, or the engine around it, is not one that pages of codes serve.
    """
    wrong = {
        "ALiBi": alibi_slopes is not None,
        "sliding windows": sliding_window is not None,
        "soft-capped scores": bool(logits_soft_cap),
        "learnt sinks": sinks is not None,
        "layers that share keys": kv_sharing_target_layer_name is not None,
        f"--kv-cache-dtype {kv_cache_dtype}": kv_cache_dtype != "auto",
        f"{attn_type} attention": attn_type != AttentionType.DECODER,
    }
    if get_current_vllm_config().kv_transfer_config is not None:
        raise InputError(
            "The hot backend's pages hold codes, which a KV connector (--kv-transfer-config) would take for keys and values. Use "
            "the tier or hot pages, not both: unset SPECTRALQUANT_HOT_PROFILE, or leave the connector out."
        )
    unread = [name for name, there in wrong.items() if there]
    if unread:
        raise InputError(
            f"The hot backend does not read {', '.join(unread)}. Serve this model with vLLM's own attention (without "
            "SPECTRALQUANT_HOT_PROFILE)."
        )
