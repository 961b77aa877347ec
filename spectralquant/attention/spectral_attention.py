"""`SpectralAttention`: how a transformers model reads a compressed cache.

Registered as an attention function *and* a mask function (without the second no mask is passed and padded batches go
wrong silently). Short queries read hot codes in place: the query is moved into the codes' coordinates once, keys and
values are never materialized. Everything else is made dense and handed to the model's own attention. A model that is
set to this implementation and called without a spectral cache attends as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from spectralquant.attention.segments import CodeSegment, Segment
from spectralquant.attention.tap import AttentionCall
from spectralquant.codec.block import BLOCK

IMPLEMENTATION = "spectralquant"
IN_PLACE_QUERIES = 16


class CacheView(Protocol):
    """What `SpectralCache.update` returns to this attention in place of a tensor. shape: (B, Hk, S, D)."""

    shape: tuple[int, int, int, int]
    device: torch.device
    recent: int
    wants_received: bool

    def dense(self) -> tuple[Tensor, Tensor]: ...

    def segments(self) -> list[Segment]: ...

    def add_received(self, attention: Tensor) -> None: ...

    def note(self, *, in_place: bool) -> None: ...


def spectral_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | CacheView,
    value: Tensor | CacheView,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention `[B, T, H, D]` of `query: [B, H, T, D]` over a cache view (or over plain tensors)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = AttentionCall(module, module.layer_idx, query, key, value, attention_mask, scale, None, None, options)
    if isinstance(key, Tensor):
        return call.run(), None
    segments = key.segments() if query.shape[2] <= IN_PLACE_QUERIES else []
    if key.wants_received and query.shape[2] <= IN_PLACE_QUERIES:
        output, p = attend_segments(call, segments)
        _count_received(key, p, query.shape[2])
    elif any(isinstance(s, CodeSegment) for s in segments):
        output = attend_segments(call, segments)[0]
        key.note(in_place=True)
        return output, None
    else:
        keys, values = key.dense()
        dense = replace(call, key=keys, value=values)
        output = dense.run()
        if key.wants_received:
            for first in _query_blocks(query.shape[2], key.shape[2]):
                _count_received_block(key, dense, *first)
    key.note(in_place=False)
    return output, None


def attend_segments(call: AttentionCall, segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
    """Attention over dense and coded segments under one softmax, in float32.

    Returns the output `[B, T, H, D]` in the query's dtype and the probabilities `[B, H, T, S]`.
    """
    batch, heads, new, dim = call.query.shape
    kv = call.key.shape[1]
    grouped = call.query.float().reshape(batch, kv, -1, dim)
    scores = torch.cat([_scores(grouped, s) for s in segments], dim=-1).view(batch, heads, new, -1)
    scores *= call.scaling
    softcap = call.options.get("softcap")
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if call.mask is not None or new > 1:
        scores.masked_fill_(~call.allowed(), float("-inf"))
    p = torch.nan_to_num(scores.softmax(-1))
    output = torch.zeros_like(grouped)
    at = 0
    for segment in segments:
        output += _weighted_values(p[..., at : at + segment.tokens].reshape(batch, kv, -1, segment.tokens), segment)
        at += segment.tokens
    output = output.view(batch, heads, new, dim).transpose(1, 2)
    return output.to(call.query.dtype).contiguous(), p


def _scores(query: Tensor, segment: Segment) -> Tensor:
    """q · k of grouped queries `[B, Hk, G·T, D]`: `[B, Hk, G·T, S]`."""
    if not isinstance(segment, CodeSegment):
        return query @ segment.keys.float().transpose(2, 3)
    batch, kv, rows, dim = query.shape
    matrices = segment.key
    constant = torch.einsum("bkrd,kd->bkr", query, matrices.constant.view(kv, dim))[..., None]
    latent = torch.einsum("bkrd,nkd->bkrn", query, matrices.decode.view(-1, kv, dim)).reshape(batch, 1, kv * rows, -1)
    found = latent @ matrices.layout.unpack(segment.key_pages)
    found = found.transpose(1, 2).reshape(batch, kv, rows, -1)[..., segment.unused :]
    return found + constant


def _weighted_values(p: Tensor, segment: Segment) -> Tensor:
    """Σ p v of grouped probabilities `[B, Hk, G·T, S]`: `[B, Hk, G·T, D]`."""
    if not isinstance(segment, CodeSegment):
        return p @ segment.values.float()
    batch, kv, rows, _ = p.shape
    matrices = segment.value
    dim = matrices.constant.shape[0] // kv
    codes = matrices.layout.unpack(segment.value_pages)
    pages, slots = codes.shape[1], codes.shape[3]
    padded = torch.nn.functional.pad(p, (segment.unused, 0)).view(batch, kv * rows, pages, slots)
    latent = (padded.transpose(1, 2) @ codes.transpose(2, 3)).sum(1).view(batch, kv, rows, -1)
    output = torch.einsum("bkrn,nkd->bkrd", latent, matrices.decode.view(-1, kv, dim))
    return output + p.sum(-1, keepdim=True) * matrices.constant.view(1, kv, 1, dim)


def _query_blocks(new: int, total: int) -> list[tuple[int, int]]:
    """Ranges of query rows that lie in one block of the token grid each."""
    first, out = total - new, []
    while first < total:
        stop = min(total, (first // BLOCK + 1) * BLOCK)
        out.append((first - (total - new), stop - (total - new)))
        first = stop
    return out


def _count_received_block(view: CacheView, call: AttentionCall, first: int, stop: int) -> None:
    """Probabilities of some query rows, computed again for what they say about recent tokens."""
    batch, heads, new, dim = call.query.shape
    kv = call.key.shape[1]
    total = call.key.shape[2]
    seen = total - new + stop
    query = call.query[:, :, first:stop].float().reshape(batch, kv, -1, dim)
    scores = (query @ call.key[:, :, :seen].float().transpose(2, 3)).view(batch, heads, stop - first, seen)
    scores *= call.scaling
    softcap = call.options.get("softcap")
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores.masked_fill_(~call.allowed()[:, :, first:stop, :seen], float("-inf"))
    p = torch.nn.functional.pad(torch.nan_to_num(scores.softmax(-1)), (0, total - seen))
    _count(view, p, total - new + first)


def _count_received(view: CacheView, p: Tensor, new: int) -> None:
    total = p.shape[-1]
    for first, stop in _query_blocks(new, total):
        _count(view, p[:, :, first:stop], total - new + first)


def _count(view: CacheView, p: Tensor, position: int) -> None:
    """Add what queries at `position`, position + 1, … give to other tokens of their own and the previous block."""
    total, rows = p.shape[-1], p.shape[2]
    recent = p[..., total - view.recent :].clone()
    offset = position - (total - view.recent)
    index = torch.arange(rows, device=p.device)
    recent[:, :, index, index + offset] = 0
    oldest = (position // BLOCK - 1) * BLOCK - (total - view.recent)
    if oldest > 0:
        recent[..., :oldest] = 0
    view.add_received(recent.sum(2))


AttentionInterface.register(IMPLEMENTATION, spectral_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
