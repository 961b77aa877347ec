"""Blocks on their way to symbols: in the basis, and quantized."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.codec.cold.features import TokenRows


@dataclass(frozen=True)
class QuantizedRun:
    """Symbols of consecutive blocks: int32 `[R, N]`, keys' components first. classes: int64 `[N, 2]`. good: bool `[N]`,
    whether a token can be coded."""

    symbols: Tensor
    classes: Tensor
    good: Tensor

    def part(self, which: Tensor) -> QuantizedRun:
        """Some tokens alone: bool `[N]`."""
        if bool(which.all()):
            return self
        return QuantizedRun(self.symbols[:, which].contiguous(), self.classes[which], self.good[which])


@dataclass(frozen=True)
class Projected:
    """Consecutive blocks in the basis: coefficients `[N, R]` of keys and values, the tokens' classes int64 `[N, 2]` as
    calibrated, and the token predictor's rows. outside: float32 `[N, 2]`, the squared length of what the basis drops of a
    token's keys and values (see `complement.outside`), or None where nobody asked."""

    y: tuple[Tensor, Tensor]
    classes: Tensor
    features: TokenRows | None
    outside: Tensor | None = None

    @property
    def finite(self) -> Tensor:
        """Bool: all coefficients are finite."""
        return torch.stack([part.isfinite().all() for part in self.y]).all()
