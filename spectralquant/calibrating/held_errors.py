"""What a tier costs with every block held to an error, in a streaming cache and after a restored prefix."""

from __future__ import annotations

import math
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
from spectralquant.methods.coding.spectral import BoundedSpec, tier_method
from spectralquant.models.load import LoadedModel
from spectralquant.profile.tensors import ColdTier, HeadSpectra, SplitTier

Told = Callable[[int, int], None]


def _untold(done: int, total: int) -> None:
    """Nobody is told."""


class HeldErrors(Protocol):
    """Measures a cold tier on windows `[N, T]` with blocks held to each of some errors (squared base steps a token).

    `as_calibrated` is the mean error of blocks that nothing holds; `options` are shown in result rows.
    """

    def as_calibrated(self, windows: Tensor, told: Told = _untold) -> float: ...

    def measure(
        self, windows: Tensor, errors: Sequence[float], told: Told = _untold, **options: float
    ) -> list[Measurement]: ...


@dataclass(frozen=True)
class StreamedErrors:
    """In the streaming protocol."""

    tier: ColdTier | SplitTier
    heads: HeadSpectra
    step: float
    loaded: LoadedModel

    def as_calibrated(self, windows: Tensor, told: Told = _untold) -> float:
        """See `HeldErrors`."""
        free = tier_method(self.tier, self.loaded, bounded=BoundedSpec(self.heads, self.step, math.inf))
        measure(self.loaded.model, self.loaded.geometry, windows, [free], told)
        parts = free.parts.values() if hasattr(free, "parts") else [free]
        return sum(sum(part.codec.errors) / len(part.codec.errors) for part in parts)

    def measure(
        self, windows: Tensor, errors: Sequence[float], told: Told = _untold, **options: float
    ) -> list[Measurement]:
        """See `HeldErrors`."""
        specs = [BoundedSpec(self.heads, self.step, e) for e in errors]
        methods = [
            tier_method(self.tier, self.loaded, bounded=spec, **(options or {"error": spec.error})) for spec in specs
        ]
        return measure(self.loaded.model, self.loaded.geometry, windows, methods, told)


@dataclass(frozen=True)
class RestoredErrors:
    """In the restored-prefix protocol."""

    tier: ColdTier | SplitTier
    heads: HeadSpectra
    step: float
    loaded: LoadedModel

    def as_calibrated(self, windows: Tensor, told: Told = _untold) -> float:
        """See `HeldErrors`."""
        codec = self._codec(math.inf)
        measure_restored(self.loaded.model, windows, [codec], progress=told)
        return sum(codec.codec.errors) / len(codec.codec.errors)

    def measure(
        self, windows: Tensor, errors: Sequence[float], told: Told = _untold, **options: float
    ) -> list[Measurement]:
        """See `HeldErrors`."""
        return measure_restored(self.loaded.model, windows, [self._codec(e) for e in errors], progress=told)

    def _codec(self, error: float) -> ServingCodec:
        heads = WeightedHeads(self.heads, self.step, self.loaded.geometry, self.loaded.device)
        rotary = model_frequencies(self.loaded.model, self.loaded.geometry)
        return serving_codec(self.tier, self.loaded, rotary, heads, error)
