"""Dense decode attention by every kernel that runs here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from sqkernels.common.runtime import variants
from sqkernels.dense_decode import dense_decode

Dense = Callable[[Tensor, Tensor, Tensor], Tensor]
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def dense_baselines(*, flex: bool = True) -> dict[str, Dense]:
    """Functions of query `[B, H, D]`, keys and values `[B, Hk, T, D]` that give `[B, H, D]`.

    sdpa_*: PyTorch's backends with `enable_gqa`; *_folded: the group folded into query rows. Whether one runs on a device
    and shape shows when it is called.
    """
    baselines: dict[str, Dense] = {}
    for name, backend in BACKENDS.items():
        baselines[f"sdpa_{name}"] = _sdpa(backend)
        baselines[f"sdpa_{name}_folded"] = _folded(backend)
    if flex:
        baselines["flex_compiled"] = _flex()
    baselines["triton_split_kv"] = dense_decode
    baselines |= {f"triton_{name}": partial(dense_decode, backend=name) for name in variants("dense_decode")}
    if importlib.util.find_spec("flashinfer") is not None:
        baselines["flashinfer"] = _flashinfer
    if importlib.util.find_spec("flash_attn") is not None:
        baselines["flash_attn"] = _flash_attn
    return baselines


def _sdpa(backend: SDPBackend) -> Dense:
    def run(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(query[:, :, None], keys, values, enable_gqa=True)[:, :, 0]

    return run


def _folded(backend: SDPBackend) -> Dense:
    def run(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        batch, kv, _, dim = keys.shape
        with sdpa_kernel(backend):
            return sdpa(query.view(batch, kv, -1, dim), keys, values).reshape(query.shape)

    return run


def _flex() -> Dense:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda query, keys, values: compiled(query[:, :, None], keys, values, enable_gqa=True)[:, :, 0]


def _flashinfer(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    import flashinfer

    parts = [
        flashinfer.single_decode_with_kv_cache(q, k, v, kv_layout="HND")
        for q, k, v in zip(query, keys, values, strict=True)
    ]
    return torch.stack(parts)


def _flash_attn(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    from flash_attn import flash_attn_with_kvcache

    return flash_attn_with_kvcache(query[:, None], keys.transpose(1, 2), values.transpose(1, 2))[:, 0]
