"""`SpectralLayer`: one layer's exact tokens, and what transformers asks of a cache layer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from spectralquant.cache.tokens.held import HOLDERS, HeldTokens, held_name
from spectralquant.cache.tokens.span import GroupSpan

RECENT, SINK_NAMES = ("keys", "values"), ("sink_keys", "sink_values")


class SpectralLayer(CacheLayerMixin):
    """Sinks `[B, Hk, s, D]` and recent tokens `[B, Hk, n, D]`; received: attention `[B, H, n]`, NaN where unknown.

    Blocks span all layers of a group (see `GroupTokens`) and belong to the cache, so cropping and reordering are the
    cache's business. index: the layer's place in the model. span: of its group. cache_update: the cache's `update`, held
    weakly: a dropped cache frees its pages at once. exact_bits: 16 (the model's dtype) or 8, see `cache.tokens.held`.
    """

    is_croppable = True
    is_compileable = False
    keys, values, sink_keys, sink_values = HeldTokens(), HeldTokens(), HeldTokens(), HeldTokens()

    def __init__(
        self, index: int, span: GroupSpan, cache_update: weakref.WeakMethod[Any], exact_bits: int = 16
    ) -> None:
        super().__init__()
        self.index, self.span, self._cache_update = index, span, cache_update
        self.holder = HOLDERS[exact_bits]
        self.sink_keys = self.sink_values = None
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
        self._change(RECENT, lambda held, new: held.extended(new), keys, values)
        if heads is not None:
            new = torch.zeros(keys.shape[0], heads, keys.shape[2], dtype=torch.float32, device=keys.device)
            self.received = new if self.received is None else torch.cat([self.received, new], dim=2)

    def _change(self, names: Sequence[str], change: Callable[..., Any], *given: Tensor) -> None:
        """Replace what holds the tokens called `names`, each by `change` of itself (and of its one of `given`)."""
        attributes = vars(self)
        for name, *new in zip(names, *([given] if given else []), strict=True):
            attributes[held_name(name)] = change(attributes[held_name(name)], *new)

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object):
        """See `SpectralCache.update`."""
        return self._cache_update()(key_states, value_states, self.index)

    def get_seq_length(self) -> int:
        if not self.is_initialized:
            return 0
        return self.span.recent_from + self.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens that attention is given, index of the first of them): of a sliding layer no more than its window."""
        total = self.get_seq_length()
        first = self.span.kind.first_read(total)
        return total - first + query_length, first

    def get_max_length(self) -> int:
        return -1 if self.window is None else self.window

    @property
    def shape(self) -> torch.Size:
        """B, Hk, n, D of the recent tokens."""
        return vars(self)[held_name("keys")].shape

    def take_sinks(self, count: int) -> None:
        """Copy the first `count` recent tokens to the sinks; the caller drops them with what else leaves."""
        attributes = vars(self)
        for sink, recent in zip(SINK_NAMES, RECENT, strict=True):
            attributes[held_name(sink)] = attributes[held_name(recent)].cut(0, count)

    def drop_sinks(self) -> None:
        """Forget the sinks."""
        self._change(SINK_NAMES, lambda held: held.cut(0, 0))

    def drop_oldest(self, count: int, *, keep_storage: bool = False) -> None:
        """Forget the oldest recent tokens; what is left gets storage of its own.

        With `keep_storage` a few tokens stay in it until the next append, which copies anyhow.
        """
        own = not (keep_storage and 8 * count <= self.shape[2])
        self._change(RECENT, lambda held: held.cut(count, None, own=own))
        if self.received is not None:
            rest = self.received[:, :, count:]
            self.received = rest.clone() if own else rest

    def give_back(self, keys: Tensor, values: Tensor) -> None:
        """Put tokens `[B, Hk, T, D]` that were coded before the recent ones; their received attention is unknown."""
        self._change(RECENT, lambda held, new: held.preceded_by(new), keys.to(self.dtype), values.to(self.dtype))
        self._receive_unknown(keys.shape[2])

    def _receive_unknown(self, count: int) -> None:
        """What the oldest `count` recent tokens received is not known."""
        if self.received is not None:
            unknown = self.received.new_full((*self.received.shape[:2], count), float("nan"))
            self.received = torch.cat([unknown, self.received], dim=2)

    def merge_sinks(self) -> None:
        """Make the sinks recent tokens again, when nothing is coded between them any more."""
        attributes = vars(self)
        sinks = [attributes[held_name(name)] for name in SINK_NAMES]
        if count := sinks[0].shape[2]:
            for name, sink in zip(RECENT, sinks, strict=True):
                attributes[held_name(name)] = sink.followed_by(attributes[held_name(name)])
            self._receive_unknown(count)
            self.drop_sinks()

    def keep_newest_but(self, count: int) -> None:
        """Remove the newest `count` recent tokens."""
        stop = self.shape[2] - count
        self._change(RECENT, lambda held: held.cut(0, stop))
        if self.received is not None:
            self.received = self.received[:, :, :stop].clone()

    def select_sequences(self, index: Tensor) -> None:
        """Keep sequences `index` of the batch, in that order."""
        if self.is_initialized:
            self._change((*RECENT, *SINK_NAMES), lambda held: held.select(index))
        if self.received is not None:
            self.received = self.received.index_select(0, index.to(self.received.device))

    def rest(self) -> None:
        """A pass has ended: tokens that it brought are held as this layer holds tokens."""
        if self.is_initialized:
            self._change((*RECENT, *SINK_NAMES), lambda held: held.rested())

    def parts(self) -> dict[str, Tensor]:
        """Every tensor this layer holds, by name."""
        held = {name: vars(self).get(held_name(name)) for name in (*RECENT, *SINK_NAMES)}
        out = {name + end: t for name, h in held.items() if h is not None for end, t in h.tensors().items()}
        return out if self.received is None else {**out, "received": self.received}

    def take_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Become a layer that holds what `parts` gave.

        Raises:
            LookupError, InputError: something else was given.
        """
        self.received = parts.get("received")
        for name in (*RECENT, *SINK_NAMES) if len(parts) > (self.received is not None) else ():
            own = {n[len(name) :]: t for n, t in parts.items() if n == name or n.startswith(f"{name}.")}
            vars(self)[held_name(name)] = self.holder.restored(own)
            self.is_initialized = True
        if self.is_initialized:
            keys = self.keys
            self.dtype, self.device = keys.dtype, keys.device

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
