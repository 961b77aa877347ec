"""Attention of pieces of prompts: their own tokens exactly, those before them from pages, a bounded part at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spectralquant.integrations.vllm.hot.gpu_pages import HotPages, Sequences

PART = 8192  # tokens of keys and values that are decoded at once


class Dense(Protocol):
    """Attention of sequences one after the other: output `[T, H, D]` and log-sum-exp `[H, T]`."""

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, ends: Tensor | None, longest: int
    ) -> tuple[Tensor, Tensor]:
        """Queries `[T, H, D]`, keys and values `[S, Hk, D]`. ends: int32 `[n + 1]`, first token of each sequence, and T: causal, keys and
        queries of the same tokens; None: one sequence whose queries see all keys. longest: tokens of the longest sequence of queries.
        """


@dataclass(frozen=True)
class Piece:
    """Tokens first … last of a step's queries, `before` tokens of whose sequence are in pages already."""

    first: int
    last: int
    before: int
    sequence: Sequences


@dataclass(frozen=True)
class Pieces:
    """All of a step, one after the other. ends: int32 `[n + 1]` on the device."""

    each: Sequence[Piece]
    ends: Tensor
    longest: int


def attend_pieces(
    hot: HotPages, layer: int, pages: Tensor, query: Tensor, new: tuple[Tensor, Tensor], pieces: Pieces, dense: Dense
) -> Tensor:
    """`[T, H, D]` of queries `[T, H, D]` with their own keys and values `new`, `[T, Hk, D]`."""
    out, weight = dense(query, *new, pieces.ends, pieces.longest)
    for piece in pieces.each:
        some = slice(piece.first, piece.last)
        if piece.before:
            out[some] = _with_pages(hot, layer, pages, query[some], (out[some], weight[:, some]), piece, dense)
    return out


def _with_pages(
    hot: HotPages, layer: int, pages: Tensor, query: Tensor, own: tuple[Tensor, Tensor], piece: Piece, dense: Dense
) -> Tensor:
    total, weight = own[0].float(), own[1].T[..., None].float()
    for first in range(0, piece.before, PART):
        count = min(PART, piece.before - first)
        both = hot.read(layer, pages, piece.sequence, first, count, query.dtype)
        part, other = dense(query, *both, None, len(query))
        other = other.T[..., None].float()
        joint = torch.logaddexp(weight, other)
        total = total * (weight - joint).exp() + part.float() * (other - joint).exp()
        weight = joint
    return total.to(query.dtype)


def plain_dense(scale: float) -> Dense:
    """In plain torch; what the engine's own kernel is held against."""

    def dense(query: Tensor, keys: Tensor, values: Tensor, ends: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
        group = query.shape[1] // keys.shape[1]
        q, k, v = (x.transpose(0, 1).float() for x in (query, keys, values))
        k, v = (x.repeat_interleave(group, 0) for x in (k, v))
        scores = q @ k.transpose(1, 2) * scale
        if ends is not None:
            token = torch.arange(len(query))
            own = torch.searchsorted(ends, token.int(), right=True)
            seen = (own[:, None] == own[None, :]) & (token[:, None] >= token[None, :])
            scores = scores.masked_fill(~seen, float("-inf"))
        return (scores.softmax(-1) @ v).transpose(0, 1).to(query.dtype), scores.logsumexp(-1)

    return dense
