"""Which reads the kernels take, and the reads themselves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spectralquant.cache.read.segments import DenseSegment, RowSegment, Segment
from spectralquant.hooks.tap import AttentionCall
from sqkernels.common import ExactTokens
from sqkernels.common.checks import HEAD_DIMS, MAX_GROUP
from sqkernels.spectral_decode import spectral_decode
from sqkernels.spectral_index_decode import spectral_index_decode


def refusal(call: AttentionCall, segments: Sequence[Segment], allowed: Tensor | None) -> str | None:
    """Why `spectral_decode` cannot take this read, or None where it can."""
    if call.query.shape[2] != 1:
        return f"{call.query.shape[2]} query tokens; the decode kernel takes one"
    if allowed is not None:
        return "a mask hides some tokens (padding, or a sliding window)"
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
    call: AttentionCall, segments: Sequence[Segment], backend: str, select: float | int | None = None
) -> Tensor:
    """Attention `[B, 1, H, D]` of one new token over sinks, codes (or the `select`ed ones) and window."""
    window = segments[-1]
    codes = next(s for s in segments if isinstance(s, RowSegment))
    sinks = segments[0] if isinstance(segments[0], DenseSegment) else None
    empty = window.keys[:, :, :0]
    exact = ExactTokens(
        empty if sinks is None else sinks.keys, empty if sinks is None else sinks.values, window.keys, window.values
    )
    query = call.query[:, :, 0]
    if select is None:
        return spectral_decode(query, codes.pages, exact, call.scaling, backend=backend)[:, None]
    return spectral_index_decode(query, codes.pages, exact, select, call.scaling, backend=backend)[:, None]
