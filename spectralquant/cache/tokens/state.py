"""`CacheState`: what a cache knows of its tokens: their ids and positions, and the groups of layers that hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectralquant.cache.tiers.base import LeavingBlock, StoredBlock
from spectralquant.cache.tokens.group import GroupTokens
from spectralquant.cache.tokens.positions import TokenPositions
from spectralquant.cache.tokens.seen import SeenTokens
from spectralquant.errors import InputError, renamed
from spectralquant.geometry import CacheGeometry, LayerGroup
from spectralquant.hooks.rotary_tables import Places, RotaryTables, Rotations
from spectralquant.streams import to_host
from spectralquant.surroundings import own_arithmetic

SHORT_PASS = 16


@dataclass
class CacheState:
    """geometry, rotary: of the whole model. groups: layers by how far back they read; the first reads furthest.

    ids: int32 `[B, T]`, or None where nothing needs them; an id of −1 was not seen (inputs_embeds, or the exact part of a
    packet). positions: where tokens stand.
    last_new: tokens that the latest forward pass appended.
    """

    geometry: CacheGeometry
    rotary: RotaryTables
    groups: list[GroupTokens]
    keep_ids: bool = False
    ids: Tensor | None = None
    positions: TokenPositions = field(default_factory=TokenPositions)
    last_new: int = 0
    _kept: tuple[dict[str, Any], list[dict[str, Any]]] | None = None
    _on_host: tuple[Tensor, Callable[[], Any]] | None = None

    def keep_as_it_is(self) -> None:
        """Remember the tokens there are (by reference: tensors are replaced, never changed), for `restore_kept`."""
        own = {"ids": self.ids, "positions": self.positions.copy(), "last_new": self.last_new}
        self._kept = (own, [group.as_it_is() for group in self.groups])

    def restore_kept(self) -> None:
        """Go back to what `keep_as_it_is` remembered."""
        if self._kept is None:
            return
        own, groups = self._kept
        for name, value in own.items():
            setattr(self, name, value)
        for group, before in zip(self.groups, groups, strict=True):
            group.go_back(before)
        self._kept = None

    def forget_kept(self) -> None:
        """Let go of what `keep_as_it_is` remembered."""
        self._kept = None

    def require_even(self) -> None:
        """Refuse a cache whose layers disagree.

        Raises:
            InputError: it was interrupted in the middle of a change.
        """
        if len({layer.get_seq_length() for group in self.groups for layer in group.layers}) > 1:
            raise InputError(
                "This cache was interrupted while its blocks were being changed, and its layers do not hold the same "
                "tokens any more. Call reset() on it, or use a new cache."
            )

    def require_croppable(self, count: int) -> None:
        """Refuse to remove the newest `count` tokens where what would be read next is not held any more.

        Raises:
            InputError: that, or more tokens than there are.
        """
        target = self.total - count
        if target < 0:
            raise InputError(f"crop({-count}) removes more tokens than the {self.total} there are.")
        if why := next(filter(None, (group.uncroppable(target) for group in self.groups)), None):
            raise InputError(
                f"crop({-count}) cannot go back to {target} tokens: {why}. Call activate_past_recording() before tokens are "
                "added that may be removed again, or keep a copy of the cache."
            )

    @property
    def sequences(self) -> list[list[StoredBlock]]:
        """Blocks of the first group, sequence by sequence."""
        return self.groups[0].sequences

    @property
    def rows(self) -> list[list[StoredBlock]]:
        """The old name of `sequences`."""
        renamed("CacheState.rows", "sequences")
        return self.sequences

    @property
    def coded_tokens(self) -> int:
        """Tokens per sequence that the first group holds in blocks."""
        return self.groups[0].coded_tokens

    @property
    def total(self) -> int:
        """Tokens per sequence."""
        return self.groups[0].total

    def begin(self, batch: int, new: int, device: torch.device, seen: SeenTokens) -> None:
        """Note what was seen of `new` tokens that a forward pass (or a direct `update`) is about to append."""
        past = self.total
        for group in self.groups:
            group.sequences = group.sequences or [[] for _ in range(batch)]
        self.last_new = new
        self.positions.append(past, new, batch, seen.positions, seen.frequencies)
        if self.keep_ids:
            complete = seen.ids is not None and seen.ids.shape[-1] == new
            added = seen.ids.expand(batch, new) if complete else torch.full((batch, new), -1, device=device)
            added = added.to(device, torch.int32)
            self.ids = added if self.ids is None else torch.cat([self.ids, added], dim=1)
            if new > SHORT_PASS:  # copied now, while nothing waits: coding what leaves the window will ask for them
                self._on_host = (self.ids, to_host(self.ids))

    def token_ids(self, row: int, start: int, stop: int) -> tuple[Tensor | None, int]:
        """Token ids int64 `[stop − start]` and the id before them (−1: none); None where they were not seen."""
        if self.ids is None:
            return None, -1
        ids = self._near_ids()
        return ids[row, start:stop].long(), int(ids[row, start - 1]) if start else -1

    def cold_ready(self, start: int, stop: int) -> bool:
        """Whether a cold tier can code tokens start … stop: one that predicts must have seen all their ids."""
        return not self.keep_ids or (self.ids is not None and not bool((self._near_ids()[:, start:stop] < 0).any()))

    def _near_ids(self) -> Tensor:
        """`ids`, on the host where a copy is there."""
        if self._on_host is not None and self._on_host[0] is self.ids:
            return torch.from_numpy(self._on_host[1]())
        return self.ids

    def rotations(self, kind: LayerGroup, row: int, start: int, stop: int) -> Rotations:
        """How tokens start … stop of one sequence are rotated in the layers of a group."""
        return self.tables(kind, self.positions.places(row, start, stop))

    def tables(self, kind: LayerGroup, places: Places) -> Rotations:
        """Rotations of a group's layers at `places`."""
        every = self.rotary(places)
        return tuple(every[layer] for layer in kind.layers)

    def leaving(self, group: GroupTokens, row: int, start: int, stop: int) -> LeavingBlock:
        """A copy of recent tokens start … stop of one sequence, in one group's layers."""
        keys, values, received = group.recent(row, start, stop)
        rotations = self.rotations(group.kind, row, start, stop)
        return LeavingBlock(keys, values, start, rotations, received, *self.token_ids(row, start, stop))

    @own_arithmetic()
    def truncate(self, target: int, whole: list[Callable[[int, StoredBlock], tuple[Tensor, Tensor]]]) -> None:
        """Keep the oldest `target` tokens; see `GroupTokens.truncate` (`whole` of each group)."""
        for group, read in zip(self.groups, whole, strict=True):
            group.truncate(target, read)
        if self.ids is not None:
            self.ids = self.ids[:, :target].clone()
        self.positions.truncate(target)

    @own_arithmetic()
    def select_sequences(self, index: Tensor) -> None:
        """Keep sequences `index`, in that order; blocks are shared."""
        for group in self.groups:
            group.select_sequences(index)
        if self.ids is not None:
            self.ids = self.ids.index_select(0, index.to(self.ids.device))
        self.positions.select_sequences(index)

    def clear(self) -> None:
        """Forget all tokens."""
        self.ids, self.positions, self.last_new = None, TokenPositions(), 0
        for group in self.groups:
            group.clear()

    def exact_tensors(self) -> list[Tensor]:
        """Sinks, recent tokens and what is kept about tokens."""
        exact = [t for group in self.groups for layer in group.layers for t in layer.parts().values()]
        return exact + ([] if self.ids is None else [self.ids]) + list(self.positions.tensors().values())
