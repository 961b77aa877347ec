"""The tiers that a profile offers, ready for one cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from spectralquant.cache.compress.reconstructor import AsyncReconstructor
from spectralquant.cache.pool import SpectralBufferPool
from spectralquant.cache.read.fused import shape_refusal
from spectralquant.cache.tiers.base import Tier
from spectralquant.cache.tiers.cold import ColdTier
from spectralquant.cache.tiers.exact import ExactTier
from spectralquant.cache.tiers.hot import HotTier
from spectralquant.cache.tiers.hot_rows import HotRowTier
from spectralquant.cache.tiers.warm import WarmTier
from spectralquant.codec.cold.from_profile import cold_codec
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.cold.token_guess import TokenGuess
from spectralquant.codec.fixed.codec import FixedRateCodec
from spectralquant.codec.hot.codec import HotCodec
from spectralquant.codec.hot.linear import row_matrices
from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK, CacheGeometry, LayerGroup
from spectralquant.hooks.wrappers import model_device
from spectralquant.models.weights import embedding_weight
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.tensors import ColdTier as ColdTensors
from spectralquant.profile.tensors import FixedTier
from spectralquant.streams import finish_here
from sqkernels.common.runtime import interpreting


@dataclass(frozen=True)
class TierMaker:
    """What a cache's tiers are made from.

    geometry: of the whole model. bound: of the cold tier (see `codec.cold.from_profile`). backend: of the kernels that read hot codes; None: torch reads them. index_rank: components of the hot
    codes' index.
    """

    model: nn.Module
    profile: CalibrationProfile | None
    geometry: CacheGeometry
    pool: SpectralBufferPool
    worker: AsyncReconstructor
    step_scale: float = 1.0
    bound: float | None = None
    backend: str | None = None
    index_rank: int = 0

    def tiers(self, layers: tuple[int, ...], *, coded: bool = True) -> dict[str, Tier]:
        """`exact` and (where blocks are `coded` at all) every tier of the profile, for some layers of the model."""
        device, geometry = model_device(self.model), self.geometry.part(layers)
        tiers: dict[str, Tier] = {"exact": ExactTier(geometry, self.model.dtype, self.pool, device)}
        profile = self.profile if coded else None
        if profile is None:
            return tiers
        before = len(profile.codecs)
        for name in profile.tiers:
            tensors = profile.tier_of(name, layers)
            if tensors is not None:
                tiers[name] = self._tier(name, profile, tensors, geometry, layers, device)
        if len(profile.codecs) > before:
            finish_here(device)  # codecs are shared by caches, which may be read on other streams
        return tiers

    def _tier(
        self,
        name: str,
        profile: CalibrationProfile,
        tensors: ColdTensors | FixedTier,
        geometry: CacheGeometry,
        layers: tuple[int, ...],
        device: torch.device,
    ) -> Tier:
        codecs = profile.codecs
        key = (name, layers, str(device), self.step_scale, self.bound)
        if key not in codecs:
            codecs[key] = _codec(name, self.model, profile, tensors, layers, geometry, self.step_scale, self.bound)
        codec = codecs[key]
        if name == "hot" and self.backend is not None:
            rows = (f"hot rows, index {self.index_rank}", layers, str(device), 1.0)
            if rows not in codecs:
                codecs[rows] = row_matrices(tensors, geometry, range(geometry.layers), device, self.index_rank)
            return HotRowTier(codec, codecs[rows], geometry, self.pool, self.backend)
        if name in ("hot", "warm"):
            return {"hot": HotTier, "warm": WarmTier}[name](codec, self.pool)
        heads, step, guess = profile.heads.part(layers), profile.sidecar.tiers["cold"].step, None
        if codec.features is not None:
            guess = codecs.setdefault(
                ("token guess", layers, str(device), self.step_scale, self.bound), TokenGuess(codec, heads, step)
            )
        return ColdTier(codec, self.worker, guess)


def usable_tiers(
    profile: CalibrationProfile, kinds: Sequence[LayerGroup], window: int, wanted: Sequence[str]
) -> tuple[str, ...]:
    """The profile's tiers that can code every group of layers that is coded at all.

    Raises:
        ProfileError: one of `wanted` cannot, because its basis mixes layers of different windows.
    """
    coded = [kind for kind in kinds if kind.reads_beyond(window + BLOCK)]
    for name in wanted:
        if name in profile.tiers:
            profile.parts(name, coded)
    return tuple(n for n in profile.tiers if all(profile.tier_of(n, kind.layers) is not None for kind in coded))


def kernel_backend(
    wanted: str, geometry: CacheGeometry, pool: torch.device, select: float | int | None = None
) -> str | None:
    """Which kernels read hot codes in a pool on a device: "triton", or None for torch.

    Raises:
        InputError: no such choice, a selection that is no share or number, or Triton was asked for (or is needed to select)
            and cannot be used.
    """
    share = isinstance(select, float)
    if select is not None and not (0 < select <= 1 if share else select > 0):
        raise InputError(f"select={select} must be a share of the coded tokens (0.08) or a positive number of them.")
    if wanted not in ("auto", "triton", "torch"):
        raise InputError(f"kernels={wanted!r} is not one of auto, triton, torch.")
    why = shape_refusal(geometry.heads, geometry.kv_heads, geometry.head_dim)
    if pool.type != "cuda" and not (wanted == "triton" and interpreting()):
        why = f"codes are on {pool}, and Triton kernels read CUDA memory (host=True keeps codes on the host)"
    if wanted == "triton" and why is not None:
        raise InputError(f"kernels='triton' cannot be used: {why}. Use kernels='auto' or 'torch'.")
    if select is not None and (wanted == "torch" or why is not None):
        raise InputError(
            f"select={select} needs kernels, which cannot be used: {why or 'kernels=torch was asked for'}."
        )
    return None if wanted == "torch" or why is not None else "triton"


def _codec(
    name: str,
    model: nn.Module,
    profile: CalibrationProfile,
    tier: ColdTensors | FixedTier,
    layers: tuple[int, ...],
    geometry: CacheGeometry,
    step_scale: float,
    bound: float | None,
) -> HotCodec | FixedRateCodec | SpectralCodec:
    device = model_device(model)
    if name == "hot":
        return HotCodec(tier, geometry, device)
    if name == "warm":
        return FixedRateCodec(tier, geometry, device)
    embedding = embedding_weight(model)
    return cold_codec(profile, tier, layers, geometry, embedding, device, step_scale=step_scale, bound=bound)
