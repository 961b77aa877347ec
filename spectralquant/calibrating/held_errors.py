"""What a tier costs with every block held to an error, in a streaming cache and after a restored prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from spectralquant.calibrating.serving import serving_codec
from spectralquant.codec.cold.complement.heads import WeightedHeads
from spectralquant.codec.serving.codec import ServingCodec
from spectralquant.evaluation.measure import Measurement, measure
from spectralquant.evaluation.restored import measure_restored
from spectralquant.hooks.rotary_frequencies import model_frequencies
from spectralquant.methods.coding.spectral import BoundedSpec, mean_error, tier_method
from spectralquant.models.load import LoadedModel
from spectralquant.profile.promises import FREE, ErrorLimits
from spectralquant.profile.tensors import ColdTier, HeadSpectra, SplitTier

Told = Callable[[int, int], None]


def _untold(done: int, total: int) -> None:
    """Nobody is told."""


class HeldErrors(Protocol):
    """Measures a cold tier on windows `[N, T]` with blocks held to each of some limits.

    `as_calibrated` is what blocks cost that nothing holds, and their mean error; `options` are shown in result rows.
    """

    def as_calibrated(self, windows: Tensor, told: Told = _untold) -> tuple[Measurement, float]: ...

    def measure(
        self, windows: Tensor, limits: Sequence[ErrorLimits], told: Told = _untold, **options: float
    ) -> list[Measurement]: ...


@dataclass(frozen=True)
class StreamedErrors:
    """In the streaming protocol."""

    tier: ColdTier | SplitTier
    heads: HeadSpectra
    step: float
    loaded: LoadedModel

    def as_calibrated(self, windows: Tensor, told: Told = _untold) -> tuple[Measurement, float]:
        """See `HeldErrors`."""
        free = tier_method(self.tier, self.loaded, bounded=BoundedSpec(self.heads, self.step, FREE))
        measured = measure(self.loaded.model, self.loaded.geometry, windows, [free], told)[0]
        return measured, mean_error(free)

    def measure(
        self, windows: Tensor, limits: Sequence[ErrorLimits], told: Told = _untold, **options: float
    ) -> list[Measurement]:
        """See `HeldErrors`."""
        specs = [BoundedSpec(self.heads, self.step, each) for each in limits]
        methods = [
            tier_method(self.tier, self.loaded, bounded=spec, **(options or {"error": spec.limits.second}))
            for spec in specs
        ]
        return measure(self.loaded.model, self.loaded.geometry, windows, methods, told)


@dataclass(frozen=True)
class RestoredErrors:
    """In the restored-prefix protocol."""

    tier: ColdTier | SplitTier
    heads: HeadSpectra
    step: float
    loaded: LoadedModel

    def as_calibrated(self, windows: Tensor, told: Told = _untold) -> tuple[Measurement, float]:
        """See `HeldErrors`."""
        codec = self._codec(FREE)
        measured = measure_restored(self.loaded.model, windows, [codec], progress=told)[0]
        return measured, sum(e.first for e in codec.codec.errors) / len(codec.codec.errors)

    def measure(
        self, windows: Tensor, limits: Sequence[ErrorLimits], told: Told = _untold, **options: float
    ) -> list[Measurement]:
        """See `HeldErrors`."""
        return measure_restored(self.loaded.model, windows, [self._codec(each) for each in limits], progress=told)

    def _codec(self, limits: ErrorLimits) -> ServingCodec:
        heads = WeightedHeads(self.heads, self.step, self.loaded.geometry, self.loaded.device)
        rotary = model_frequencies(self.loaded.model, self.loaded.geometry)
        return serving_codec(self.tier, self.loaded, rotary, heads, limits)
