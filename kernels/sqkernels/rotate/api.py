"""Checked entry point of rotary embedding."""

from __future__ import annotations

from torch import Tensor

from sqkernels.common import runtime
from sqkernels.rotate import reference


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Queries and keys after RoPE: x · cos + rotate_half(x) · sin (Su et al. 2021, arXiv 2104.09864, in halves).

    Args:
        query: `[B, H, 1, D]`. key: `[B, Hk, 1, D]`. cos, sin: `[B or 1, 1, D]`.
        backend: auto (Triton on CUDA, else the reference), triton or reference.

    Raises:
        ValueError: shapes disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    batch, _, tokens, dim = query.shape
    good = key.shape[0] == batch and key.shape[2:] == query.shape[2:] and tokens == 1 and dim % 2 == 0
    if not good or cos.shape != sin.shape or cos.shape[0] not in (1, batch) or cos.shape[1:] != (1, dim):
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and tables {tuple(cos.shape)} disagree: they must be "
            "[B, H, 1, D], [B, Hk, 1, D] and [B or 1, 1, D], D even"
        )
    if runtime.choose(backend, query.device) == "reference":
        return reference.rotate(query, key, cos, sin)
    from sqkernels.rotate.triton import launch

    return launch(query, key, cos, sin)
