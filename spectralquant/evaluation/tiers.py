"""Tiers of one model, measured by the harness: what calibration solves for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from spectralquant.evaluation.measure import Measurement, measure
from spectralquant.methods.coding.spectral import tier_method
from spectralquant.models.load import LoadedModel
from spectralquant.profile.tensors import ColdTier, FixedTier, SplitTier


def measure_tiers(
    loaded: LoadedModel,
    tiers: Sequence[ColdTier | FixedTier | SplitTier],
    windows: Tensor,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    hot: bool = False,
) -> list[Measurement]:
    """Measure tiers on windows of token ids `[N, T]`. hot: they are hot tiers."""
    methods = [tier_method(tier, loaded, hot=hot) for tier in tiers]
    return measure(loaded.model, loaded.geometry, windows, methods, progress)
