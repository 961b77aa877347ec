"""What both hot backends are as vLLM makes them, and what neither reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionImpl, AttentionType

from spectralquant.errors import InputError
from spectralquant.geometry import CacheGeometry


class HotLayer(AttentionImpl[Any]):
    """One layer's attention; its arguments are vLLM's, which both builds name alike.

    Raises:
        InputError: the layer, or the engine around it, is not one that pages of codes serve.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        if get_current_vllm_config().kv_transfer_config is not None:
            raise InputError(
                "The hot backend's pages hold codes, which a KV connector (--kv-transfer-config) would take for keys and values. "
                "Use the tier or hot pages, not both: unset SPECTRALQUANT_HOT_PROFILE, or leave the connector out."
            )
        wrong = {
            "ALiBi": alibi_slopes is not None,
            "sliding windows": sliding_window is not None,
            "soft-capped scores": bool(logits_soft_cap),
            "learnt sinks": sinks is not None,
            "layers that share keys": kv_sharing_target_layer_name is not None,
            f"--kv-cache-dtype {kv_cache_dtype}": kv_cache_dtype != "auto",
            f"{attn_type} attention": attn_type != AttentionType.DECODER,
        }
        unread = [name for name, there in wrong.items() if there]
        if unread:
            raise InputError(
                f"The hot backend does not read {', '.join(unread)}. Serve this model with vLLM's own attention (without "
                "SPECTRALQUANT_HOT_PROFILE)."
            )
        self.num_heads, self.num_kv_heads, self.head_size, self.scale = num_heads, num_kv_heads, head_size, scale
        self.kv_cache_dtype = kv_cache_dtype


def require_heads(spec: Any, geometry: CacheGeometry) -> None:
    """Refuse a layer's cache that the profile does not fit.

    Raises:
        InputError: naming both.
    """
    if (spec.num_kv_heads, spec.head_size, spec.head_size_v) != (geometry.kv_heads, *2 * (geometry.head_dim,)):
        raise InputError(
            f"The engine's layers have {spec.num_kv_heads} key/value heads of {spec.head_size}, the hot tier's profile "
            f"{geometry.kv_heads} of {geometry.head_dim}: it is of another model, or the engine runs tensor parallel, which this "
            "backend does not."
        )
