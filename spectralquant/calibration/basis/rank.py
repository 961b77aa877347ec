"""Ranks of heads and the water level that meets a budget (reverse water-filling; Cover & Thomas, section 10.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.calibration.basis.spectrum import gaussian_rate
from spectralquant.errors import InputError

THIN = 1e-6


@dataclass(frozen=True)
class NyquistRankSelector:
    """Rank of a head: its components above the water level θ = Δ²/12 that step Δ leaves as distortion.

    A component below it costs less when dropped than when coded, as a frequency above half the sampling rate carries
    nothing that the samples could show. Where a head's gradient statistics are too thin to have a spectrum, its rank
    is predicted from its attention entropy: a linear fit over all other heads.
    """

    step: float

    def ranks(self, variance: Tensor, entropy: Tensor) -> Tensor:
        """Ranks float32 `[L, Hk]` from variances `[L, Hk, D]` and entropies in nats `[L, Hk]` (group means)."""
        level = self.step**2 / 12
        ranks = (variance > level).sum(-1).float()
        energy = variance.sum(-1)
        thin = energy < THIN * energy.median()
        if not bool(thin.any()) or bool(thin.all()):
            return ranks
        x, y = entropy[~thin].double(), ranks[~thin].double()
        centred = x - x.mean()
        slope = (centred * y).sum() / centred.square().sum().clamp_min(1e-12)
        prior = y.mean() + slope * (entropy.double() - x.mean())
        return torch.where(thin, prior.clamp(0, variance.shape[-1]).round().float(), ranks)


class RankAllocator:
    """Turn spectra into a step for a budget in bits per scalar, assuming Gaussian components.

    The result is a first guess: fitted tables and held-out text decide (see `calibration.cold`).
    """

    def __init__(self, spectra: Sequence[Tensor]) -> None:
        """`spectra`: variances of all components of keys and of values, any number of 1-D tensors."""
        self.spectra = [s.double().flatten() for s in spectra]

    def rate(self, step: float, scalars: int) -> float:
        """Predicted bits per scalar at `step`."""
        return sum(gaussian_rate(s, step).sum().item() for s in self.spectra) / scalars

    def step_for_bits(self, bits: float, scalars: int) -> float:
        """The step at which the predicted rate is `bits` per scalar.

        Raises:
            InputError: a budget that is not positive.
        """
        if not bits > 0:
            raise InputError(f"A budget of {bits} bits per scalar cannot be met; it must be positive.")
        top = max(s.max().item() for s in self.spectra) ** 0.5
        low, high = top * 1e-6, top * 1e2
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.rate(middle, scalars) > bits else (low, middle)
        return middle
