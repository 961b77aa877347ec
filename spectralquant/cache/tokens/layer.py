"""`SpectralLayer`: one layer's exact tokens, and what transformers asks of a cache layer."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from spectralquant.cache.tokens.span import GroupSpan


class SpectralLayer(CacheLayerMixin):
    """Sinks `[B, Hk, s, D]` and recent tokens `[B, Hk, n, D]`; received: attention `[B, H, n]`, NaN where unknown.

    Blocks span all layers of a group (see `GroupTokens`) and belong to the cache, so cropping and reordering are the
    cache's business. index: the layer's place in the model. span: of its group. cache_update: the cache's `update`, held
    weakly: a dropped cache frees its pages at once.
    """

    is_croppable = True
    is_compileable = False

    def __init__(self, index: int, span: GroupSpan, cache_update: weakref.WeakMethod[Any]) -> None:
        super().__init__()
        self.index, self.span, self._cache_update = index, span, cache_update
        self.sink_keys: Tensor | None = None
        self.sink_values: Tensor | None = None
        self.received: Tensor | None = None

    @property
    def window(self) -> int | None:
        """Tokens that a query reads at most, itself included, or None for all."""
        return self.span.kind.window

    @property
    def is_sliding(self) -> bool:
        """Whether a query reads a window only."""
        return self.window is not None

    @property
    def record_past(self) -> bool:
        """Whether tokens beyond the window are held until the next crop (`activate_past_recording`)."""
        return self.span.recording

    @record_past.setter
    def record_past(self, value: bool) -> None:
        self.span.recording = value

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads, _, dim = key_states.shape
        self.keys = self.values = key_states.new_zeros(batch, heads, 0, dim)
        self.sink_keys = self.sink_values = self.keys
        self.is_initialized = True

    def append(self, keys: Tensor, values: Tensor, heads: int | None) -> None:
        """Add new exact tokens `[B, Hk, T, D]`; `heads` H asks for room to count received attention."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys = torch.cat([self.keys, keys], dim=2)
        self.values = torch.cat([self.values, values], dim=2)
        if heads is not None:
            new = torch.zeros(keys.shape[0], heads, keys.shape[2], dtype=torch.float32, device=keys.device)
            self.received = new if self.received is None else torch.cat([self.received, new], dim=2)

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object):
        """See `SpectralCache.update`."""
        return self._cache_update()(key_states, value_states, self.index)

    def get_seq_length(self) -> int:
        if not self.is_initialized:
            return 0
        return self.span.recent_from + self.keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens that attention is given, index of the first of them): of a sliding layer no more than its window."""
        total = self.get_seq_length()
        first = self.span.kind.first_read(total)
        return total - first + query_length, first

    def get_max_length(self) -> int:
        return -1 if self.window is None else self.window

    def take_sinks(self, count: int) -> None:
        """Copy the first `count` recent tokens to the sinks; the caller drops them with what else leaves."""
        self.sink_keys, self.sink_values = self.keys[:, :, :count].clone(), self.values[:, :, :count].clone()

    def drop_sinks(self) -> None:
        """Forget the sinks."""
        self.sink_keys, self.sink_values = self.sink_keys[:, :, :0].clone(), self.sink_values[:, :, :0].clone()

    def drop_oldest(self, count: int, *, keep_storage: bool = False) -> None:
        """Forget the oldest recent tokens; what is left gets storage of its own.

        With `keep_storage` a few tokens stay in it until the next append, which copies anyhow.
        """
        few = keep_storage and 8 * count <= self.keys.shape[2]
        own = (lambda t: t) if few else Tensor.clone
        self.keys, self.values = own(self.keys[:, :, count:]), own(self.values[:, :, count:])
        if self.received is not None:
            self.received = own(self.received[:, :, count:])

    def give_back(self, keys: Tensor, values: Tensor) -> None:
        """Put tokens `[B, Hk, T, D]` that were coded before the recent ones; their received attention is unknown."""
        self.keys = torch.cat([keys.to(self.dtype), self.keys], dim=2)
        self.values = torch.cat([values.to(self.dtype), self.values], dim=2)
        if self.received is not None:
            unknown = self.received.new_full((*self.received.shape[:2], keys.shape[2]), float("nan"))
            self.received = torch.cat([unknown, self.received], dim=2)

    def merge_sinks(self) -> None:
        """Make the sinks recent tokens again, when nothing is coded between them any more."""
        if self.sink_keys.shape[2]:
            keys, values = self.sink_keys, self.sink_values
            self.sink_keys, self.sink_values = keys[:, :, :0].clone(), values[:, :, :0].clone()
            self.give_back(keys, values)

    def keep_newest_but(self, count: int) -> None:
        """Remove the newest `count` recent tokens."""
        stop = self.keys.shape[2] - count
        self.keys, self.values = self.keys[:, :, :stop].clone(), self.values[:, :, :stop].clone()
        if self.received is not None:
            self.received = self.received[:, :, :stop].clone()

    def select_sequences(self, index: Tensor) -> None:
        """Keep sequences `index` of the batch, in that order."""
        for name in ("keys", "values", "sink_keys", "sink_values", "received"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.index_select(0, index.to(tensor.device)))

    def tensors(self) -> list[Tensor]:
        """Every tensor this layer holds."""
        every = (self.keys, self.values, self.sink_keys, self.sink_values, self.received)
        return [t for t in every if t is not None]

    def reset(self) -> None:
        self.keys = self.values = self.sink_keys = self.sink_values = self.received = None
        self.is_initialized = False

    def _cache_wide(self, *args: object) -> None:
        raise RuntimeError(
            "a coded block spans several layers: call this on the SpectralCache, not on one of its layers"
        )

    crop = reorder_cache = batch_repeat_interleave = batch_select_indices = _cache_wide

    def offload(self) -> None:
        """Nothing: pages are offloaded by the cache (host=True)."""

    def prefetch(self) -> None:
        """Nothing: see `offload`."""
