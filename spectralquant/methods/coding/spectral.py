"""`spectral`: our own codec as a method, one class a kind of tier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold.complement.bounded import ErrorBound
from spectralquant.codec.cold.complement.heads import WeightedHeads
from spectralquant.codec.cold.from_profile import coded_layers
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.fixed.codec import FixedBlock, FixedRateCodec
from spectralquant.codec.hot.codec import HotBlock, HotCodec
from spectralquant.codec.packet import INDEX_ENTRY
from spectralquant.errors import InputError, ProfileError
from spectralquant.geometry import CacheGeometry
from spectralquant.methods.context import MethodContext
from spectralquant.methods.entry import MethodEntry
from spectralquant.methods.grouped import GroupedMethod, grouped
from spectralquant.models.load import LoadedModel
from spectralquant.models.weights import embedding_weight
from spectralquant.profile.promises import ErrorLimits, error_limits
from spectralquant.profile.tensors import ColdTier, FixedTier, HeadSpectra, SplitTier, tier_part

SUM_BYTES = 4


@dataclass(frozen=True)
class _Bytes:
    data: bytes

    @property
    def nbytes(self) -> int:
        return len(self.data) + INDEX_ENTRY.size


class SpectralCold:
    """Cold tier: real entropy-coded bytes, index entry and checksum included.

    sums_per_token: bytes a layer that a cache keeps about a recent token until it is coded, the attention that each query
    head gave it, from which its importance follows.
    """

    name = "spectral"

    def __init__(self, codec: SpectralCodec, exact_bits: int = 16, **options: Any) -> None:
        self.codec = codec
        self.exact_bits = exact_bits
        self.sums_per_token = SUM_BYTES * codec.geometry.heads
        self.options = {"tier": "cold", "exact_bits": exact_bits, **options}

    def encode(self, block: KVBlock) -> _Bytes:
        return _Bytes(self.codec.encode(block))

    def decode(self, encoded: _Bytes) -> tuple[Tensor, Tensor]:
        return self.codec.decode(encoded.data)


def cold_parts(method: SpectralCold | GroupedMethod) -> list[SpectralCold]:
    """The cold codecs of a method, one a group of layers."""
    parts = list(method.parts.values()) if isinstance(method, GroupedMethod) else [method]
    return [part for part in parts if isinstance(part, SpectralCold)]


def mean_error(method: SpectralCold | GroupedMethod) -> float:
    """The mean error of the latest blocks that a bounded method coded, before any second stage, over all layers."""
    return sum(sum(e.first for e in p.codec.errors) / max(1, len(p.codec.errors)) for p in cold_parts(method))


class SpectralFixed:
    """Warm or hot tier: packed fixed-rate codes, by the codec that a cache uses."""

    name = "spectral"

    def __init__(self, codec: FixedRateCodec | HotCodec, exact_bits: int = 16, **options: Any) -> None:
        self.codec = codec
        self.exact_bits = exact_bits
        rounded = {"exact_bits": exact_bits} if exact_bits != 16 else {}
        self.options = {"tier": "hot" if isinstance(codec, HotCodec) else "warm", **rounded, **options}

    def encode(self, block: KVBlock) -> FixedBlock | HotBlock:
        return self.codec.encode(block)

    def decode(self, encoded: FixedBlock | HotBlock) -> tuple[Tensor, Tensor]:
        return self.codec.decode(encoded)


def fixed_codec(hot: bool) -> type[FixedRateCodec] | type[HotCodec]:
    """The codec of the hot or of the warm tier."""
    return HotCodec if hot else FixedRateCodec


def require_options(
    tier: str = "cold",
    step_scale: float = 1.0,
    exact_bits: int = 16,
    adaptive_tables: bool = False,
    bound: float | None = None,
) -> None:
    """Refuse options out of range, and those that the tier does not have.

    Raises:
        InputError: naming the constraint.
    """
    if tier not in ("cold", "warm", "hot"):
        raise InputError(f"spectral: tier={tier!r} is not one of cold, warm, hot.")
    if not 0.05 <= step_scale <= 20:
        raise InputError(f"spectral: step_scale={step_scale:g} is outside 0.05 to 20.")
    if exact_bits not in (8, 16):
        raise InputError(f"spectral: exact_bits={exact_bits} is not one of 8, 16.")
    if bound is not None and not (math.isfinite(bound) and bound > 0):
        raise InputError(f"spectral: bound={bound:g} is not a KL above 0, in nats a token.")
    if tier != "cold" and (step_scale != 1.0 or adaptive_tables or bound is not None):
        raise InputError(f"spectral: step_scale, adaptive_tables and bound belong to the cold tier, not to {tier}.")


def spectral_from_profile(
    context: MethodContext,
    tier: str = "cold",
    step_scale: float = 1.0,
    exact_bits: int = 16,
    adaptive_tables: bool = False,
    bound: float | None = None,
) -> SpectralCold | SpectralFixed | GroupedMethod:
    """A tier of the context's profile.

    Raises:
        InputError: no profile, or options out of range. ProfileError: it lacks the tier, or is another model's.
    """
    require_options(tier, step_scale, exact_bits, adaptive_tables, bound)
    profile = context.need_profile("spectral")
    loaded = context.loaded
    if tier != "cold":
        return tier_method(profile.tier(tier), loaded, exact_bits, hot=tier == "hot")
    options, bounded = ({} if step_scale == 1.0 else {"step_scale": step_scale}), None
    if bound is not None:
        options |= {"bound": bound}
        limits = error_limits(profile.sidecar.tiers["cold"], bound)
        bounded = BoundedSpec(profile.heads, profile.sidecar.tiers["cold"].step, limits)
    return tier_method(
        profile.tier("cold"),
        loaded,
        exact_bits,
        step=step_scale,
        adaptive_tables=adaptive_tables,
        bounded=bounded,
        **options,
    )


@dataclass(frozen=True)
class BoundedSpec:
    """What a cold tier needs to keep a bound: the profile's heads, its base step, and the errors of all layers together."""

    heads: HeadSpectra
    step: float
    limits: ErrorLimits


def tier_method(
    tier: ColdTier | FixedTier | SplitTier,
    loaded: LoadedModel,
    exact_bits: int = 16,
    *,
    hot: bool = False,
    step: float = 1.0,
    adaptive_tables: bool = False,
    bounded: BoundedSpec | None = None,
    **options: Any,
) -> SpectralCold | SpectralFixed | GroupedMethod:
    """A tier as a method for the harness, group by group where layers do not read equally far back.

    hot: it is the hot tier. step: multiplies the cold tier's; bounded: has every block keep a bound; `options` are shown in result rows, as `adaptive_tables` is.

    Raises:
        ProfileError: its bases mix layers of several groups.
    """
    embedding = embedding_weight(loaded.model)
    if adaptive_tables:
        options |= {"adaptive_tables": True}

    def build(layers: tuple[int, ...], geometry: CacheGeometry) -> SpectralCold | SpectralFixed:
        tensors = tier_part(tier, layers, loaded.geometry.layers, geometry.layer_width)
        if tensors is None:
            raise ProfileError(
                "This tier codes layers as one that do not read equally far back. Calibrate again: profiles of today keep "
                "such layers apart."
            )
        if isinstance(tensors, FixedTier):
            return SpectralFixed(fixed_codec(hot)(tensors, geometry, loaded.device), exact_bits, **options)
        heads = limit = None
        if bounded is not None:
            heads = WeightedHeads(bounded.heads.part(layers), bounded.step, geometry, loaded.device)
            share = len(layers) / coded_layers(tier, loaded.geometry)
            limit = ErrorBound(bounded.limits.plain * share, bounded.limits.second * share, share)
        codec = SpectralCodec(
            tensors, geometry, embedding, loaded.device, step, adaptive_tables, heads=heads, bound=limit
        )
        return SpectralCold(codec, exact_bits, **options)

    return grouped(loaded.geometry, build)


METHOD = MethodEntry(
    "spectral",
    "loss-weighted transform over layers, calibrated bits, entropy coding",
    "this project",
    spectral_from_profile,
    {"tier": str, "step_scale": float, "exact_bits": int, "adaptive_tables": bool, "bound": float},
    ({"step_scale": 0.5}, {}, {"step_scale": 2.0}, {"tier": "warm"}, {"tier": "hot"}),
    check=require_options,
)
