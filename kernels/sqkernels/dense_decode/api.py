"""Checked entry point of dense decode attention."""

from __future__ import annotations

from torch import Tensor

from sqkernels.common import runtime
from sqkernels.common.checks import MAX_GROUP
from sqkernels.dense_decode import reference


def dense_decode(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float | None = None, *, backend: str = "auto"
) -> Tensor:
    """Attention `[B, H, D]` of one query a sequence over `keys, values: [B, Hk, T, D]`, H = Hk·G with G ≤ 16.

    Raises:
        ValueError: shapes disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    batch, kv, _, dim = keys.shape
    if keys.shape != values.shape or query.shape[0] != batch or query.shape[1] % kv or query.shape[2] != dim:
        raise ValueError(
            f"query {tuple(query.shape)}, keys {tuple(keys.shape)} and values {tuple(values.shape)} disagree"
        )
    if query.shape[1] // kv > MAX_GROUP:
        raise ValueError(f"{query.shape[1] // kv} query heads share a key head; at most {MAX_GROUP} can")
    scale = dim**-0.5 if scaling is None else scaling
    chosen = runtime.choose(backend, query.device, "dense_decode")
    if chosen == "reference":
        return reference.dense_decode(query, keys, values, scale)
    if chosen != "triton":
        return runtime.variant("dense_decode", chosen)(query, keys, values, scale)
    from sqkernels.dense_decode.launch import launch

    return launch(query.contiguous(), keys.contiguous(), values.contiguous(), scale)
