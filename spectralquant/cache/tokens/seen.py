"""`SeenTokens`: what a model's forward pass showed of the tokens that it is about to append."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SeenTokens:
    """Ids `[B, T]`, positions `[B or 1, T]` or `[A, B or 1, T]`, and
    the rotary frequencies `[F]` of a dynamic model; None what was not seen.
    """

    ids: Tensor | None
    positions: Tensor | None
    frequencies: Tensor | None
