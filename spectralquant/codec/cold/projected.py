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


@dataclass(frozen=True)
class Projected:
    """Consecutive blocks in the basis: coefficients `[N, R]` of keys and values, the tokens' classes int64 `[N, 2]` as
    calibrated, and the token predictor's rows."""

    y: tuple[Tensor, Tensor]
    classes: Tensor
    features: TokenRows | None

    @property
    def finite(self) -> Tensor:
        """Bool: all coefficients are finite."""
        return torch.stack([part.isfinite().all() for part in self.y]).all()
