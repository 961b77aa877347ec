"""`SpectralAttention`: how a transformers model reads a compressed cache.

Registered as an attention function *and* a mask function (without the second no mask is passed and padded batches go
wrong silently). Short queries read hot codes in place: the query is moved into the codes' coordinates once, keys and
values are never materialized. Everything else is made dense and handed to the model's own attention. The model is set
to this implementation during passes that are given a spectral cache, and only then (see `implementation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from spectralquant.cache.read.fused import attend_rows, refusal, weights_wanted
from spectralquant.cache.read.segments import CodeSegment, Segment
from spectralquant.geometry import BLOCK
from spectralquant.hooks.implementation import make_mask, own_implementation, run_own, switched_here
from spectralquant.hooks.received import attend_and_receive
from spectralquant.hooks.softmax import probabilities
from spectralquant.hooks.tap import AttentionCall
from spectralquant.surroundings import own_arithmetic

IMPLEMENTATION = "spectralquant"
IN_PLACE_QUERIES = 16


class CacheView(Protocol):
    """What `SpectralCache.update` returns to this attention in place of a tensor. shape: (B, Hk, S, D).

    in_place: whether some of its tokens are codes that can be read in place. rows: the kernels' backend where those codes are
    rows, which nothing but kernels reads in place; else None. select: what part of such rows a read takes. watches: whether `observe` wants probabilities `[B, H, t, n]`
    of queries from `position` on, over the n tokens that were read; `add_received` takes what all of them received. `allowed` is the mask over those tokens, None where all
    are allowed. `note` counts a read ("kernel", "in_place", "dense"); `refuse` is told why kernels do not take one.
    `weights` gives probabilities over all tokens where fewer were read; `forget_received` is told that probabilities of a
    read are not known.
    """

    shape: tuple[int, int, int, int]
    device: torch.device
    in_place: bool
    rows: str | None
    select: float | int | None
    watches: bool

    def dense(self) -> tuple[Tensor, Tensor]: ...

    def segments(self) -> list[Segment]: ...

    def allowed(self, call: AttentionCall) -> Tensor | None: ...

    def observe(self, p: Tensor, position: int) -> None: ...

    def add_received(self, received: Tensor) -> None: ...

    def note(self, how: str) -> None: ...

    def refuse(self, reason: str) -> None: ...

    def weights(self, p: Tensor) -> Tensor: ...

    def forget_received(self) -> None: ...


@torch.compiler.disable
def spectral_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | CacheView,
    value: Tensor | CacheView,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention `[B, T, H, D]` of `query: [B, H, T, D]` over a cache view (or over plain tensors).

    Weights `[B, H, T, S]` come with it where the model's own implementation is the one that returns them (eager).
    """
    if isinstance(key, Tensor) and not switched_here(module.config):  # a pass of another thread
        return run_own(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = AttentionCall(module, module.layer_idx, query, key, value, attention_mask, scale, None, None, options)
    if isinstance(key, Tensor):
        return call.attend()
    eager = own_implementation(module.config) == "eager"
    why = call.left_to_model()
    short = query.shape[2] <= IN_PLACE_QUERIES
    if short and key.rows is not None and not key.watches:
        segments, allowed = key.segments(), key.allowed(call)
        reason = why or refusal(call, segments, allowed) or (weights_wanted(call) if eager else None)
        output = None if reason else attend_rows(call, segments, allowed, key.rows, key.select)
        if output is not None:
            key.note("kernel")
            return output, None
        key.refuse(reason or "a mask hides tokens between others that it shows")
    if short and why is None and key.rows is None and (key.in_place or key.watches):
        key.note("in_place" if key.in_place else "dense")
        output, p = attend_segments(call, key.segments(), key.allowed(call))
        if key.watches:
            key.observe(p, key.shape[2] - query.shape[2])
        return output, key.weights(p).to(query.dtype) if eager else None
    return _attend_dense(call, why)


def _attend_dense(call: AttentionCall, why: str | None) -> tuple[Tensor, Tensor | None]:
    """The model's own attention over reconstructed keys and values. why: see `AttentionCall.left_to_model`."""
    view, new = call.key, call.query.shape[2]
    view.note("dense")
    keys, values = view.dense()
    dense = replace(call, key=keys, value=values)
    if view.watches and why is None and own_implementation(call.module.config) != "eager":
        both = attend_and_receive(dense, BLOCK)
        if both is not None:
            view.add_received(both[1])
            return both[0], None
    output = dense.attend()
    if view.watches and why is not None:
        view.forget_received()
    elif view.watches:
        for first in range(0, new, BLOCK):
            p = _probabilities(dense, first, min(new, first + BLOCK))
            view.observe(p, keys.shape[2] - new + first)
    return output


@own_arithmetic()
def attend_segments(call: AttentionCall, segments: Sequence[Segment], allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention over dense and coded segments under one softmax, in float32; `allowed: [B, 1 or H, T, S]` or None.

    Returns the output `[B, T, H, D]` in the query's dtype and the probabilities `[B, H, T, S]`.
    """
    batch, heads, new, dim = call.query.shape
    kv = call.key.shape[1]
    grouped = call.query.float().reshape(batch, kv, -1, dim)
    scores = torch.cat([_scores(grouped, s) for s in segments], dim=-1).view(batch, heads, new, -1)
    scores *= call.scaling
    p = probabilities(scores, allowed, call.options)
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
    constant = query @ matrices.constant.view(kv, dim, 1)
    latent = (query @ matrices.decode).view(batch, 1, kv * rows, -1)
    scores = latent @ matrices.layout.shifted(segment.key_pages)
    scores = scores.transpose(1, 2).reshape(batch, kv, rows, -1)[..., segment.unused :]
    return scores + constant


def _weighted_values(p: Tensor, segment: Segment) -> Tensor:
    """Σ p v of grouped probabilities `[B, Hk, G·T, S]`: `[B, Hk, G·T, D]`."""
    if not isinstance(segment, CodeSegment):
        return p @ segment.values.float()
    batch, kv, rows, _ = p.shape
    matrices = segment.value
    codes = matrices.layout.shifted(segment.value_pages)
    pages, slots = codes.shape[1], codes.shape[3]
    padded = torch.nn.functional.pad(p, (segment.unused, 0)).view(batch, kv * rows, pages, slots)
    latent = (padded.transpose(1, 2) @ codes.transpose(2, 3)).sum(1).view(batch, kv, rows, -1)
    return latent @ matrices.decode.transpose(1, 2) + p.sum(-1, keepdim=True) * matrices.constant.view(kv, 1, -1)


@own_arithmetic()
def _probabilities(call: AttentionCall, first: int, stop: int) -> Tensor:
    """Attention probabilities float32 `[B, H, stop − first, S]` of some queries over dense keys, computed again."""
    batch, heads, new, dim = call.query.shape
    kv, total = call.key.shape[1], call.key.shape[2]
    seen = total - new + stop
    query = call.query[:, :, first:stop].float().reshape(batch, kv, -1, dim)
    scores = (query @ call.key[:, :, :seen].float().transpose(2, 3)).view(batch, heads, stop - first, seen)
    scores *= call.scaling
    p = probabilities(scores, call.allowed(slice(first, stop))[..., :seen], call.options)
    return p if seen == total else torch.nn.functional.pad(p, (0, total - seen))


AttentionInterface.register(IMPLEMENTATION, spectral_attention)
AttentionMaskInterface.register(IMPLEMENTATION, make_mask)
