"""Checked entry point of dense latent decode attention."""

from __future__ import annotations

from torch import Tensor

from sqkernels.common import runtime
from sqkernels.common.checks import check_attention
from sqkernels.common.pages import ExactTokens, RowPages
from sqkernels.spectral_decode import reference


def spectral_decode(
    query: Tensor, pages: RowPages, exact: ExactTokens, scaling: float | None = None, *, backend: str = "auto"
) -> Tensor:
    """Attention `[B, H, D]` of one new token a sequence over sinks, codes and window under one softmax.

    Codes are read in place: scores are (decode · q) · codes and the codes of values are summed before they are decoded
    (method.md section 5). A sequence without any token gives zeros.

    Args:
        query: `[B, H, D]`, H = Hk·G with G ≤ 16, after RoPE. scaling: default D^(−1/2).
        backend: auto (Triton on CUDA, else the reference), triton or reference.

    Raises:
        ValueError: shapes, dtypes or devices disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    check_attention(query, pages, exact)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    chosen = runtime.choose(backend, query.device, "spectral_decode")
    if chosen == "reference":
        return reference.spectral_decode(query, pages, exact, scale)
    if chosen != "triton":
        return runtime.variant("spectral_decode", chosen)(query, pages, exact, scale)
    from sqkernels.spectral_decode.ops import decode

    return decode(query, pages, exact, scale)
