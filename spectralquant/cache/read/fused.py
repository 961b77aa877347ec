"""Which reads the kernels take, and the reads themselves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spectralquant.cache.read.expanded import expand
from spectralquant.cache.read.segments import DenseSegment, RowSegment, Segment
from spectralquant.hooks.tap import AttentionCall
from sqkernels.common import ExactTokens
from sqkernels.common.checks import HEAD_DIMS, MAX_GROUP
from sqkernels.spectral_decode import spectral_decode
from sqkernels.spectral_index_decode import spectral_index_decode


def refusal(call: AttentionCall, segments: Sequence[Segment], allowed: Tensor | None) -> str | None:
    """Why `spectral_decode` cannot take this read, or None where it may (see `attend_rows`)."""
    if allowed is not None and allowed.shape[1] != 1:
        return "a mask hides other tokens from other heads"
    if call.options.get("softcap") is not None:
        return "scores are soft-capped"
    if call.options.get("s_aux") is not None:
        return "the model has learnt attention sinks"
    if sum(isinstance(s, RowSegment) for s in segments) != 1 or not isinstance(segments[-1], DenseSegment):
        return "other tiers hold some of the tokens"
    if len(segments) > 3:
        return "tokens lie in more than sinks, codes and window"
    return None


def weights_wanted(call: AttentionCall) -> str | None:
    """A reason where attention weights were asked for, which kernels never hold."""
    config = getattr(call.module, "config", None)
    wanted = call.options.get("output_attentions") or getattr(config, "output_attentions", False)
    return "attention weights were asked for (output_attentions)" if wanted else None


def shape_refusal(heads: int, kv_heads: int, head_dim: int) -> str | None:
    """Why kernels cannot take a model at all, or None."""
    if heads // kv_heads > MAX_GROUP:
        return f"{heads // kv_heads} query heads share a key head, and kernels take at most {MAX_GROUP}"
    if head_dim not in HEAD_DIMS:
        return f"its head dimension is {head_dim}, and kernels take {', '.join(map(str, HEAD_DIMS))}"
    return None


def attend_rows(
    call: AttentionCall,
    segments: Sequence[Segment],
    allowed: Tensor | None,
    backend: str,
    select: float | int | None = None,
) -> Tensor | None:
    """Attention `[B, T, H, D]` of a few new tokens over sinks, codes (or the `select`ed ones) and window.

    allowed: boolean `[B or 1, 1, T, S]`, or None where one token sees everything. None where a mask hides coded tokens that
    lie between visible ones.
    """
    window = segments[-1]
    codes = next(s for s in segments if isinstance(s, RowSegment))
    sinks = segments[0] if isinstance(segments[0], DenseSegment) else None
    empty = window.keys[:, :, :0]
    exact = ExactTokens(
        empty if sinks is None else sinks.keys, empty if sinks is None else sinks.values, window.keys, window.values
    )
    query, pages = call.query[:, :, 0], codes.pages
    if allowed is not None:
        rows = expand(call.query, pages, exact, codes.tokens, allowed)
        if rows is None:
            return None
        query, pages, exact = rows
    if select is None:
        output = spectral_decode(query, pages, exact, call.scaling, backend=backend)
    else:
        output = spectral_index_decode(query, pages, exact, select, call.scaling, backend=backend)
    return output.unflatten(0, (call.query.shape[0], -1))
