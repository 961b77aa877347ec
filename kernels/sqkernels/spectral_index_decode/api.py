"""Checked entry points of index decode attention."""

from __future__ import annotations

from torch import Tensor

from sqkernels.common import runtime
from sqkernels.common.checks import check_attention
from sqkernels.common.pages import ExactTokens, RowPages
from sqkernels.spectral_index_decode import reference
from sqkernels.spectral_index_decode.budget import Budget, check_budget


def spectral_index_decode(
    query: Tensor,
    pages: RowPages,
    exact: ExactTokens,
    budget: Budget,
    scaling: float | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Attention `[B, H, D]` over sinks, window and the `budget` coded tokens that score highest on the index.

    The index is scanned whole; of the other codes only those of selected tokens are read. All heads of a group share a
    selection, by the mean of their scores. Where the budget ends is found to a 32nd of the range of scores; the cells of
    1,024 slots share what is left in proportion, each selecting its highest scores to a 256th of the range. Nothing is
    synchronized with the host, so calls can be captured in a CUDA graph.

    Args:
        query: `[B, H, D]`, H = Hk·G with G ≤ 16, after RoPE. scaling: default D^(−1/2).
        budget: tokens (int), a share of the coded tokens (float up to 1.0), or int32 `[B, Hk]` or `[Hk]`.
        backend: auto (Triton on CUDA, else the reference), triton or reference.

    Raises:
        ValueError: arguments disagree, or the pages have no index. RuntimeError: Triton was asked for and cannot run.
    """
    check_attention(query, pages, exact)
    if pages.matrices.index is None:
        raise ValueError("these pages have no index; build RowMatrices with index=… or use spectral_decode")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    check_budget(budget, pages)
    chosen = runtime.choose(backend, query.device, "spectral_index_decode")
    if chosen == "reference":
        return reference.spectral_index_decode(query, pages, exact, budget, scale)
    if chosen != "triton":
        return runtime.variant("spectral_index_decode", chosen)(query, pages, exact, budget, scale)
    from sqkernels.spectral_index_decode.ops import index_decode

    return index_decode(query, pages, exact, budget, scale)[0]


def select_tokens(
    query: Tensor,
    pages: RowPages,
    exact: ExactTokens,
    budget: Budget,
    scaling: float | None = None,
    *,
    backend: str = "auto",
) -> list[list[Tensor]]:
    """The coded tokens that `spectral_index_decode` reads, per sequence and head, ascending (for tests and studies)."""
    check_attention(query, pages, exact)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    check_budget(budget, pages)
    if runtime.choose(backend, query.device) == "reference":
        return reference.select_tokens(query, pages, budget)
    from sqkernels.spectral_index_decode.ops import index_decode, selected_tokens

    _, selected, counts = index_decode(query, pages, exact, budget, scale)
    return selected_tokens(selected, counts, pages)
