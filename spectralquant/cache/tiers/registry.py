"""The tiers that a profile offers, ready for one cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from spectralquant.cache.pool import SpectralBufferPool
from spectralquant.cache.reconstructor import AsyncReconstructor
from spectralquant.cache.tiers.base import Tier
from spectralquant.cache.tiers.cold import ColdTier
from spectralquant.cache.tiers.exact import ExactTier
from spectralquant.cache.tiers.hot import HotTier
from spectralquant.cache.tiers.warm import WarmTier
from spectralquant.codec.adaptive import AdaptiveRankCompressor
from spectralquant.codec.fixed import FixedRateCodec
from spectralquant.codec.hot import HotCodec
from spectralquant.codec.spectral import SpectralCodec
from spectralquant.profile import CalibrationProfile
from spectralquant.sources.geometry import CacheGeometry


def make_tiers(
    model: nn.Module,
    profile: CalibrationProfile | None,
    geometry: CacheGeometry,
    pool: SpectralBufferPool,
    reconstructor: AsyncReconstructor,
    step_scale: float,
    adaptive: Mapping[str, Any] | None = None,
) -> dict[str, Tier]:
    """`exact` and every tier of the profile; with `adaptive` (its options) the cold tier follows drifting text."""
    tiers: dict[str, Tier] = {"exact": ExactTier(geometry, model.dtype, pool)}
    codecs = {} if profile is None else profile.codecs
    for name in () if profile is None else profile.tiers:
        key = (name, str(model.device), step_scale)
        if key not in codecs:
            codecs[key] = _codec(name, model, profile, geometry, step_scale)
        codec = codecs[key]
        if name == "hot":
            tiers[name] = HotTier(codec, pool)
        elif name == "warm":
            tiers[name] = WarmTier(codec, pool)
        else:
            if adaptive is not None:
                codec = AdaptiveRankCompressor(codec, profile.heads, profile.sidecar.tiers["cold"].step, **adaptive)
            tiers[name] = ColdTier(codec, reconstructor)
    return tiers


def _codec(
    name: str, model: nn.Module, profile: CalibrationProfile, geometry: CacheGeometry, step_scale: float
) -> HotCodec | FixedRateCodec | SpectralCodec:
    tier = profile.tier(name)
    if name == "hot":
        return HotCodec(tier, geometry, model.device)
    if name == "warm":
        return FixedRateCodec(tier, geometry, model.device, rotated=False)
    embedding = model.get_input_embeddings().weight.detach()
    return SpectralCodec(tier, geometry, embedding, model.device, step_scale)
