"""Caches that `generate` is timed over. Each is made for a batch and a length, and can be filled without a prompt pass.

Speed depends on shapes, not on what caches hold: filled with random numbers, a cell costs seconds where reading a prompt
of a million tokens would cost minutes. Times to first token do read prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.geometry import BLOCK
from spectralquant.graphed.coded_layers import CodedLayers
from spectralquant.graphed.model import GraphedModel
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile


class Contender(Protocol):
    """A way of generating. `fill` holds `tokens` tokens a sequence; `generate` continues them (or reads a prompt)."""

    name: str

    def fill(self, tokens: int) -> None: ...

    def generate(self, ids: Tensor, filled: bool, **options: Any) -> Any: ...


@dataclass
class Place:
    """What every contender is made for."""

    loaded: LoadedModel
    profile: CalibrationProfile
    batch: int
    max_tokens: int

    def tensors(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Random keys and values `[B, Hk, tokens, D]`."""
        g, model = self.loaded.geometry, self.loaded.model
        shape = (self.batch, g.kv_heads, tokens, g.head_dim)
        return tuple(torch.empty(shape, device=self.loaded.device, dtype=model.dtype).normal_() for _ in range(2))


class Dynamic:
    """transformers' DynamicCache, eager."""

    name = "dynamic"

    def __init__(self, place: Place) -> None:
        self.place, self.cache = place, None

    def fill(self, tokens: int) -> None:
        if self.cache is not None:
            self.cache.crop(tokens - self.cache.get_seq_length())
            return
        self.cache = DynamicCache()
        for layer in range(self.place.loaded.geometry.layers):
            self.cache.update(*self.place.tensors(tokens), layer)

    def generate(self, ids: Tensor, filled: bool, **options: Any) -> Any:
        cache = self.cache if filled else DynamicCache()
        return self.place.loaded.model.generate(ids, past_key_values=cache, **options)


class Static:
    """transformers' StaticCache; `generate` compiles its steps with CUDA graphs (mode reduce-overhead)."""

    name = "static_compiled"

    def __init__(self, place: Place) -> None:
        self.place, self.cache = place, None

    def _new(self) -> StaticCache:
        g, model = self.place.loaded.geometry, self.place.loaded.model
        cache = StaticCache(config=model.config, max_cache_len=self.place.max_tokens)
        cache.early_initialization(self.place.batch, g.kv_heads, g.head_dim, model.dtype, self.place.loaded.device)
        return cache

    def fill(self, tokens: int) -> None:
        first = self.cache is None
        self.cache = self.cache or self._new()
        for layer in self.cache.layers:
            if first:
                layer.keys.normal_()
                layer.values.normal_()
            layer.cumulative_length.fill_(tokens)

    def generate(self, ids: Tensor, filled: bool, **options: Any) -> Any:
        if not filled:
            self.cache = self.cache or self._new()
            self.cache.reset()
        return self.place.loaded.model.generate(ids, past_key_values=self.cache, **options)


class Hot:
    """`GraphedModel`: hot codes, steps as CUDA graphs; with `select` a part of them is read."""

    def __init__(self, place: Place, select: float | None = None) -> None:
        self.place = place
        self.name = "hot" if select is None else "hot_select"
        self.graphed = GraphedModel(
            place.loaded.model, place.profile, max_tokens=place.max_tokens, batch=place.batch, select=select
        )

    def fill(self, tokens: int) -> None:
        for part in self.graphed.cache.parts:
            if isinstance(part, CodedLayers):
                part.storage.random_(0, 256)
            part.keys.normal_()
            part.values.normal_()
        self.graphed.cache.lengths.start([tokens] * self.place.batch)

    def generate(self, ids: Tensor, filled: bool, **options: Any) -> Any:
        return self.graphed.generate(ids, resume=filled, **options)


class Growing:
    """`SpectralCache` of one tier, eager; it is filled by a prompt pass."""

    def __init__(self, place: Place, tier: str) -> None:
        self.place, self.name, self.tier, self.cache = place, tier, tier, None

    def fill(self, tokens: int) -> None:
        self.cache = SpectralCache(self.place.loaded.model, self.place.profile, tier=self.tier)
        ids = torch.randint(3, 200, (self.place.batch, tokens), device=self.place.loaded.device)
        with torch.no_grad():
            self.place.loaded.model(input_ids=ids, past_key_values=self.cache, logits_to_keep=1)

    def generate(self, ids: Tensor, filled: bool, **options: Any) -> Any:
        model = self.place.loaded.model
        cache = self.cache if filled else SpectralCache(model, self.place.profile, tier=self.tier)
        return model.generate(ids, past_key_values=cache, **options)


def least_tokens() -> int:
    """Tokens below which nothing is coded."""
    return 2 * BLOCK + 4
