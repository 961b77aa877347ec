"""Cold codecs of a profile: with its heads, which read second stages, and with a bound where one is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.codec.cold.complement.bounded import ErrorBound
from spectralquant.codec.cold.complement.heads import WeightedHeads
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.errors import InputError
from spectralquant.geometry import CacheGeometry
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.promises import error_limits
from spectralquant.profile.tensors import ColdTier, FixedTier, SplitTier


def cold_codec(
    profile: CalibrationProfile,
    tier: ColdTier,
    layers: tuple[int, ...],
    geometry: CacheGeometry,
    embedding: Tensor | None,
    device: torch.device | str,
    *,
    step_scale: float = 1.0,
    adaptive_tables: bool = False,
    bound: float | None = None,
) -> SpectralCodec:
    """The codec of a cold tier's tensors for some layers (`geometry` is theirs).

    bound: KL in nats a token that no text is to cost more than; see `error_limits`.

    Raises:
        InputError: a bound, of a profile that was not calibrated for one or beyond what it knows.
    """
    step = profile.sidecar.tiers["cold"].step
    heads = None if step is None else WeightedHeads(profile.heads.part(layers), step, geometry, device)
    limit = None if bound is None else error_bound(profile, layers, bound)
    return SpectralCodec(tier, geometry, embedding, device, step_scale, adaptive_tables, heads=heads, bound=limit)


def error_bound(profile: CalibrationProfile, layers: tuple[int, ...], bound: float) -> ErrorBound:
    """What a KL in nats a token allows some layers as error: their share, by number, of all that are coded."""
    limits = error_limits(profile.sidecar.tiers["cold"], bound)
    whole = profile.tier("cold")
    assert not isinstance(whole, FixedTier)
    share = len(layers) / coded_layers(whole, profile.geometry)
    return ErrorBound(limits.plain * share, limits.second * share, share)


def coded_layers(tier: ColdTier | SplitTier, geometry: CacheGeometry) -> int:
    """Layers that a tier codes at all."""
    return sum(map(len, tier.layers)) if isinstance(tier, SplitTier) else geometry.layers


def chosen_bound(profile: CalibrationProfile | None, bound: float | str | None) -> float | None:
    """A bound as options name it: "auto" is what the cold tier was calibrated for, where that is an error target.

    Raises:
        InputError: neither "auto", None nor a positive number; or no profile, or one without what a bound needs.
    """
    summary = None if profile is None else profile.sidecar.tiers.get("cold")
    if bound is None or bound == "auto":
        name, _, value = ("" if summary is None else summary.target).partition("=")
        return float(value) if bound == "auto" and name == "error" else None
    if isinstance(bound, (str, bool)) or not bound > 0:
        raise InputError(f"bound={bound!r} must be a KL in nats a token above 0, auto or None.")
    if summary is None:
        raise InputError(f"bound={bound:g} needs a profile with a cold tier.")
    error_limits(summary, bound)
    return float(bound)
