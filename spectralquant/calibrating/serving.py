"""Tiers for serving engines, measured as an engine uses them (see `evaluation.restored`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from spectralquant.codec.cold.complement.bounded import ErrorBound
from spectralquant.codec.cold.complement.heads import WeightedHeads
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.serving.codec import ServingCodec
from spectralquant.evaluation.measure import Measurement
from spectralquant.evaluation.restored import measure_restored
from spectralquant.evaluation.tiers import measure_tiers
from spectralquant.hooks.rotary_frequencies import RotaryFrequencies, model_frequencies
from spectralquant.models.load import LoadedModel
from spectralquant.profile.promises import ErrorLimits
from spectralquant.profile.tensors import ColdTier, FixedTier, SplitTier


def serving_codec(
    tier: ColdTier | FixedTier | SplitTier,
    loaded: LoadedModel,
    rotary: RotaryFrequencies,
    heads: WeightedHeads | None = None,
    limits: ErrorLimits | None = None,
) -> ServingCodec:
    """The codec of a tier, on the model's device; limits: of its blocks' errors, which needs the profile's heads."""
    assert isinstance(tier, ColdTier)  # a calibration for serving makes nothing else
    bound = None if limits is None else ErrorBound(limits.plain, limits.second)
    return ServingCodec(SpectralCodec(tier, loaded.geometry, None, loaded.device, heads=heads, bound=bound), rotary)


def measure_serving_tiers(
    loaded: LoadedModel,
    tiers: Sequence[ColdTier | FixedTier | SplitTier],
    windows: Tensor,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    hot: bool = False,
) -> list[Measurement]:
    """See `MeasureTiers`."""
    if hot:  # read in place, as by caches
        return measure_tiers(loaded, tiers, windows, progress, hot=True)
    rotary = model_frequencies(loaded.model, loaded.geometry)
    return measure_restored(
        loaded.model, windows, [serving_codec(tier, loaded, rotary) for tier in tiers], progress=progress
    )
