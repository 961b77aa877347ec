"""The tiers that a profile offers, ready for one cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from spectralquant.codec.cold.adaptive import AdaptiveRankCompressor
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.cold.token_guess import TokenGuess
from spectralquant.codec.fixed.codec import FixedRateCodec
from spectralquant.codec.hot.codec import HotCodec
from spectralquant.codec.hot.linear import row_matrices
from spectralquant.errors import InputError
from spectralquant.geometry import CacheGeometry
from spectralquant.hooks.wrappers import model_device
from spectralquant.models.weights import embedding_weight
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.tensors import ColdTier as ColdTensors
from spectralquant.profile.tensors import FixedTier
from spectralquant.streams import finish_here
from sqkernels.common.runtime import interpreting


def make_tiers(
    model: nn.Module,
    profile: CalibrationProfile | None,
    whole: CacheGeometry,
    layers: tuple[int, ...],
    pool: SpectralBufferPool,
    reconstructor: AsyncReconstructor,
    step_scale: float,
    adaptive: Mapping[str, Any] | None = None,
    backend: str | None = None,
    index_rank: int = 0,
) -> dict[str, Tier]:
    """`exact` and every tier of the profile for some layers of a model; with `adaptive` (its options) the cold tier follows
    drifting text.

    backend: of the kernels that read hot codes; None: torch reads them. index_rank: components of the hot codes' index.
    """
    device, geometry = model_device(model), whole.part(layers)
    tiers: dict[str, Tier] = {"exact": ExactTier(geometry, model.dtype, pool, device)}
    codecs = {} if profile is None else profile.codecs
    held = len(codecs)
    for name in () if profile is None else profile.tiers:
        tensors = profile.tier_of(name, layers)
        if tensors is None:
            continue
        key = (name, layers, str(device), step_scale)
        if key not in codecs:
            codecs[key] = _codec(name, model, tensors, geometry, step_scale)
        codec = codecs[key]
        if name == "hot" and backend is not None:
            rows = (f"hot rows, index {index_rank}", layers, str(device), 1.0)
            if rows not in codecs:
                codecs[rows] = row_matrices(tensors, geometry, range(geometry.layers), device, index_rank)
            tiers[name] = HotRowTier(codec, codecs[rows], geometry, pool, backend)
        elif name == "hot":
            tiers[name] = HotTier(codec, pool)
        elif name == "warm":
            tiers[name] = WarmTier(codec, pool)
        else:
            guess = None
            if codec.features is not None:
                new = TokenGuess(codec, profile.heads.part(layers), profile.sidecar.tiers["cold"].step)
                guess = codecs.setdefault(("token guess", layers, str(device), step_scale), new)
            if adaptive is not None:
                codec = AdaptiveRankCompressor(
                    codec, profile.heads.part(layers), profile.sidecar.tiers["cold"].step, **adaptive
                )
            tiers[name] = ColdTier(codec, reconstructor, guess)
    if len(codecs) > held:
        finish_here(device)  # codecs are shared by caches, which may be read on other streams
    return tiers


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
    name: str, model: nn.Module, tier: ColdTensors | FixedTier, geometry: CacheGeometry, step_scale: float
) -> HotCodec | FixedRateCodec | SpectralCodec:
    device = model_device(model)
    if name == "hot":
        return HotCodec(tier, geometry, device)
    if name == "warm":
        return FixedRateCodec(tier, geometry, device, rotated=False)
    return SpectralCodec(tier, geometry, embedding_weight(model), device, step_scale)
