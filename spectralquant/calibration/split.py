"""Tiers of models whose layers do not read equally far back: each group of layers is fitted and coded on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spectralquant.calibration.cold.fit import ColdFitter, ColdReport, search_step
from spectralquant.calibration.fixed.fit import FixedFitter
from spectralquant.geometry import CacheGeometry
from spectralquant.profile.tensors import ColdTier, SplitTier


@dataclass
class SplitColdFitter:
    """Cold fitters of groups of layers (method.md section 2).

    shares: of a text's codes that are held at its end, a group's. A bit of a code that is let go costs less, so steps are
    finer by the root of that: then the last bit spent saves as much error in every group.
    """

    geometry: CacheGeometry
    layers: list[tuple[int, ...]]
    fitters: list[ColdFitter]
    shares: list[float]

    @property
    def finer(self) -> list[float]:
        """What each group's step is of the base step."""
        return [math.sqrt(share) for share in self.shares]

    @property
    def features(self) -> Any:
        """The token predictor's features, or None."""
        return self.fitters[0].features

    @property
    def variance(self) -> list[Tensor]:
        """Variances of all components of keys and of values, in units in which all steps are the same."""
        both = list(zip(self.fitters, self.shares, strict=True))
        return [torch.cat([f.variance[kind] / share for f, share in both]) for kind in range(2)]

    def kept(self, kind: int, step: float) -> Tensor:
        """See `ColdFitter.kept`; indices into `variance`."""
        indices, at = [], 0
        for fitter, finer in zip(self.fitters, self.finer, strict=True):
            indices.append(fitter.kept(kind, step * finer) + at)
            at += len(fitter.variance[kind])
        return torch.cat(indices)

    def limit_rank(self, step: float, count: int) -> None:
        """See `ColdFitter.limit_rank`."""
        variance = torch.cat([v[self.kept(kind, step)] for kind, v in enumerate(self.variance)])
        level = variance.sort(descending=True).values[min(count, len(variance)) - 1]
        for fitter, share in zip(self.fitters, self.shares, strict=True):
            fitter.allowed = [v >= level * share for v in fitter.variance]

    def step_for_ratio(self, ratio: float) -> float:
        """See `ColdFitter.step_for_ratio`."""
        scalars = sum(2 * f.geometry.width for f in self.fitters)
        starts = [f.allocator.step_for_bits(16 / ratio, 2 * f.geometry.width) for f in self.fitters]
        weights = [2 * f.geometry.width / scalars for f in self.fitters]
        start = sum(s * w for s, w in zip(starts, weights, strict=True))
        return search_step(lambda step, stride: self.report(step, stride).predicted_ratio, ratio, start)

    def fit(self, step: float, stride: int = 1) -> tuple[SplitTier, ColdReport]:
        """See `ColdFitter.fit`; the report is of all groups together, of what is held of a token."""
        both = [f.fit(step * finer, stride) for f, finer in zip(self.fitters, self.finer, strict=True)]
        return SplitTier(tuple(self.layers), tuple(tier for tier, _ in both)), self._together(
            step, [r for _, r in both]
        )

    def report(self, step: float, stride: int = 1) -> ColdReport:
        """See `ColdFitter.report`."""
        both = zip(self.fitters, self.finer, strict=True)
        return self._together(step, [f.report(step * finer, stride) for f, finer in both])

    def _together(self, step: float, reports: list[ColdReport]) -> ColdReport:
        widths = [f.geometry.width for f in self.fitters]
        mean = lambda values: sum(v * w for v, w in zip(values, widths, strict=True)) / sum(widths)  # noqa: E731
        held = lambda values: sum(v * share for v, share in zip(values, self.shares, strict=True))  # noqa: E731
        bits = held([r.bits_per_token for r in reports])
        fp16 = held([f.geometry.fp16_bytes_per_token for f in self.fitters])
        pairs = lambda name: tuple(mean([getattr(r, name)[i] for r in reports]) for i in range(2))  # noqa: E731
        return ColdReport(
            step=step,
            bits_per_token=bits,
            predicted_ratio=8 * fp16 / bits,
            alive_key=mean([r.alive_key for r in reports]),
            alive_value=mean([r.alive_value for r in reports]),
            importance_r2=pairs("importance_r2"),
            captured_energy=pairs("captured_energy"),
            overhead_bytes=held([r.overhead_bytes for r in reports]),
        )


@dataclass
class SplitFixedFitter:
    """Fixed-rate fitters of groups of layers, each of which meets the target alone: how many tokens a group holds depends on
    the context.
    """

    layers: list[tuple[int, ...]]
    fitters: list[FixedFitter]

    @property
    def weights(self) -> list[Tensor]:
        """Variances of all components of keys and of values."""
        return [torch.cat([f.weights[kind] for f in self.fitters]) for kind in range(2)]

    def fit(self, bits_per_scalar: float) -> SplitTier:
        """See `FixedFitter.fit`."""
        return SplitTier(tuple(self.layers), tuple(f.fit(bits_per_scalar) for f in self.fitters))


def replaced(tier: ColdTier | SplitTier, change: Callable[[ColdTier], dict[str, Tensor]]) -> ColdTier | SplitTier:
    """A cold tier with some tensors of every part replaced."""
    if isinstance(tier, SplitTier):
        return replace(tier, parts=tuple(replaced(part, change) for part in tier.parts))
    return replace(tier, **change(tier))


def parts_of(tier: Any) -> Sequence[Any]:
    """A tier's parts: itself where all layers are one."""
    return tier.parts if isinstance(tier, SplitTier) else (tier,)
