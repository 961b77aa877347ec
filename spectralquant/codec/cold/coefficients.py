"""Blocks after entropy decoding: coefficients of the basis, before any is multiplied out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectralquant.codec.cold.features import TokenFeatures, TokenRows

Ids = tuple[int, Tensor]
HALF_LIMIT = 60_000


@dataclass(frozen=True)
class SecondStage:
    """What a second stage adds to one layer's keys (kind 0) or values (1), from token `first` on.

    y: `[Hk, T, D]`, coefficients in the heads' own bases `back: [Hk, D, D]`, or coordinates where that is None.
    """

    first: int
    kind: int
    layer: int
    y: Tensor
    back: Tensor | None

    @property
    def tokens(self) -> int:
        return self.y.shape[1]

    def residual(self) -> Tensor:
        """Float32 `[T, Hk·D]`."""
        x = self.y.float()
        return (x if self.back is None else x @ self.back).transpose(0, 1).flatten(1)


@dataclass(frozen=True)
class BlockCoefficients:
    """One block or several consecutive ones: coefficients float `[T, R]` of keys and values, or raw `[2, T, P]`.

    ids: the id before each block and its ids `[T']`, or None. features: the token predictor's rows. extra: second
    stages (see `codec.cold.complement`).
    """

    tokens: int
    y: tuple[Tensor, Tensor] | None
    raw: Tensor | None
    ids: tuple[Ids, ...] | None = None
    features: TokenRows | None = None
    extra: tuple[SecondStage, ...] = ()

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Coefficients of keys and values, of a block that is not raw."""
        assert self.y is not None
        return self.y

    def part(self, first: int, last: int) -> BlockCoefficients:
        """Tokens first … last of these."""
        if (first, last) == (0, self.tokens):
            return self
        extra = []
        for e in self.extra:
            begin, end = max(first, e.first), min(last, e.first + e.tokens)
            if begin < end:
                extra.append(replace(e, first=begin - first, y=e.y[:, begin - e.first : end - e.first]))
        return replace(
            self,
            tokens=last - first,
            y=None if self.y is None else (self.y[0][first:last], self.y[1][first:last]),
            raw=None if self.raw is None else self.raw[:, first:last],
            ids=None,
            features=None if self.features is None else self.features.part(first, last),
            extra=tuple(extra),
        )


def halved(coded: BlockCoefficients, dtype: torch.dtype) -> BlockCoefficients:
    """Coefficients in 16 bits while they wait, bfloat16 where that is the products' `dtype`: half the memory, and an
    error far below the quantizer's."""
    if coded.y is None:
        return coded
    y = (_halved(coded.y[0], dtype), _halved(coded.y[1], dtype))
    return replace(coded, y=y, extra=tuple(replace(e, y=_halved(e.y, torch.float16)) for e in coded.extra))


def _halved(y: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bfloat16:
        return y.bfloat16()
    return y.half() if not y.numel() or float(y.abs().max()) <= HALF_LIMIT else y


def joined(parts: Sequence[BlockCoefficients], features: TokenFeatures | None) -> list[BlockCoefficients]:
    """Consecutive coded blocks as one, so that a layer is one product; raw blocks stay alone."""
    out: list[BlockCoefficients] = []
    run: list[BlockCoefficients] = []
    for part in (*parts, None):
        if part is not None and part.raw is None:
            run.append(part)
            continue
        if run:
            out.append(run[0] if len(run) == 1 else _join(run, features))
            run = []
        if part is not None:
            out.append(part)
    return out


def _join(run: Sequence[BlockCoefficients], features: TokenFeatures | None) -> BlockCoefficients:
    keys, values = (torch.cat([p.pair[i] for p in run]) for i in range(2))
    ids = None if run[0].ids is None else tuple(pair for p in run for pair in p.ids or ())
    starts = [sum(p.tokens for p in run[:i]) for i in range(len(run))]
    extra = tuple(replace(e, first=e.first + start) for p, start in zip(run, starts, strict=True) for e in p.extra)
    rows = None if features is None or ids is None else features.rows(ids)
    return BlockCoefficients(sum(p.tokens for p in run), (keys, values), None, ids, rows, extra)
