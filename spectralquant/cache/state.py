"""`CacheState`: the tokens of a cache, row by row: coded blocks, exact layers, ids and positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectralquant.cache.binding import ModelBinding
from spectralquant.cache.layer import SpectralLayer
from spectralquant.cache.positions import TokenPositions
from spectralquant.cache.tiers.base import LeavingBlock, StoredBlock
from spectralquant.codec.block import BLOCK, SINKS
from spectralquant.errors import InputError


@dataclass
class CacheState:
    """Tokens in order: 4 sinks, coded blocks (`rows[b]`), recent tokens (in `layers`).

    ids: int32 `[B, T]`, or None where nothing needs them; an id of −1 was not seen (inputs_embeds, or the exact part of a
    packet). positions: where tokens stand.
    last_new: tokens that the latest forward pass appended.
    """

    binding: ModelBinding
    layers: list[SpectralLayer]
    keep_ids: bool
    rows: list[list[StoredBlock]] = field(default_factory=list)
    coded_tokens: int = 0
    ids: Tensor | None = None
    positions: TokenPositions = field(default_factory=TokenPositions)
    last_new: int = 0
    _kept: tuple[dict[str, Any], list[dict[str, Any]]] | None = None

    def keep_as_it_is(self) -> None:
        """Remember the tokens there are (by reference: tensors are replaced, never changed), for `restore_kept`."""
        own = {name: getattr(self, name) for name in ("rows", "coded_tokens", "ids", "positions", "last_new")}
        own |= {"rows": [list(row) for row in self.rows], "positions": self.positions.copy()}
        self._kept = (own, [dict(vars(layer)) for layer in self.layers])

    def restore_kept(self) -> None:
        """Go back to what `keep_as_it_is` remembered."""
        if self._kept is None:
            return
        own, layers = self._kept
        for name, value in own.items():
            setattr(self, name, value)
        for layer, attributes in zip(self.layers, layers, strict=True):
            vars(layer).clear()
            vars(layer).update(attributes)
        self._kept = None

    def forget_kept(self) -> None:
        """Let go of what `keep_as_it_is` remembered."""
        self._kept = None

    def require_even(self) -> None:
        """Refuse a cache whose layers disagree.

        Raises:
            InputError: it was interrupted in the middle of a change.
        """
        if len({layer.get_seq_length() for layer in self.layers}) > 1:
            raise InputError(
                "This cache was interrupted while its blocks were being changed, and its layers do not hold the same "
                "tokens any more. Call reset() on it, or use a new cache."
            )

    @property
    def total(self) -> int:
        """Tokens per sequence."""
        return self.layers[0].get_seq_length()

    @property
    def coded_stop(self) -> int:
        """One past the last coded token (0 before anything is coded)."""
        return SINKS + self.coded_tokens if self.coded_tokens else 0

    def begin(self, batch: int, new: int, device: torch.device) -> None:
        """Note ids and positions of `new` tokens that a forward pass (or a direct `update`) is about to append."""
        past = self.total
        if not self.rows:
            self.rows = [[] for _ in range(batch)]
        self.last_new = new
        ids, positions, frequencies = self.binding.take()
        self.positions.append(past, new, batch, positions, frequencies)
        if self.keep_ids:
            seen = ids is not None and ids.shape[-1] == new
            mine = ids.expand(batch, new) if seen else torch.full((batch, new), -1, device=device)
            mine = mine.to(device, torch.int32)
            self.ids = mine if self.ids is None else torch.cat([self.ids, mine], dim=1)

    def token_ids(self, row: int, start: int, stop: int) -> tuple[Tensor | None, int]:
        """Token ids int64 `[stop − start]` and the id before them (−1: none); None where they were not seen."""
        if self.ids is None:
            return None, -1
        return self.ids[row, start:stop].long(), int(self.ids[row, start - 1]) if start else -1

    def cold_ready(self, start: int, stop: int) -> bool:
        """Whether a cold tier can code tokens start … stop: one that predicts must have seen all their ids."""
        return not self.keep_ids or (self.ids is not None and not bool((self.ids[:, start:stop] < 0).any()))

    def next_stop(self, coded_stop: int) -> int:
        """Where the block that begins at `coded_stop` ends."""
        return (coded_stop // BLOCK + 1) * BLOCK

    def leaving(self, row: int, start: int, stop: int) -> LeavingBlock:
        """A copy of recent tokens start … stop of one sequence."""
        part = slice(start - self.coded_stop, stop - self.coded_stop)
        keys = torch.stack([layer.keys[row, :, part] for layer in self.layers])
        values = torch.stack([layer.values[row, :, part] for layer in self.layers])
        received = None
        if all(layer.received is not None for layer in self.layers):
            received = (
                torch.stack([layer.received[row, :, part] for layer in self.layers]).permute(2, 0, 1).contiguous()
            )
            received = None if bool(received.isnan().any()) else received
        rotations = self.binding.tables(self.positions.places(row, start, stop))
        return LeavingBlock(keys, values, start, rotations, received, *self.token_ids(row, start, stop))

    def append_blocks(self, coded: list[list[StoredBlock]]) -> None:
        """Replace the oldest recent tokens by their blocks (`coded[i][row]`)."""
        tokens = sum(blocks[0].tokens for blocks in coded)
        for blocks in coded:
            for row, block in enumerate(blocks):
                self.rows[row].append(block)
        for layer in self.layers:
            if not self.coded_tokens:
                layer.take_sinks(SINKS)
            layer.drop_oldest(tokens)
        self.coded_tokens += tokens

    def truncate(self, target: int, whole: Callable[[int, StoredBlock], tuple[Tensor, Tensor]]) -> None:
        """Keep the oldest `target` tokens; a block that is cut becomes exact again, as `whole(row, block)` gives it."""
        drop = self.total - target
        for layer in self.layers:
            layer.keep_newest_but(min(drop, layer.keys.shape[2]))
        while self.coded_tokens and self.total > target:
            last = self.rows[0][-1]
            both = []
            if last.start < target:
                both = [whole(row, blocks[-1]) for row, blocks in enumerate(self.rows)]
            for blocks in self.rows:
                blocks.pop()
            self.coded_tokens -= last.tokens
            for index, layer in enumerate(self.layers if both else ()):
                kept = [torch.stack([pair[i][index] for pair in both])[:, :, : target - last.start] for i in range(2)]
                layer.give_back(*kept)
        if not self.coded_tokens:
            for layer in self.layers:
                layer.merge_sinks()
                layer.keep_newest_but(layer.keys.shape[2] - target)
        if self.ids is not None:
            self.ids = self.ids[:, :target].clone()
        self.positions.truncate(target)

    def select_rows(self, index: Tensor) -> None:
        """Keep rows `index`, in that order; blocks are shared."""
        for layer in self.layers:
            layer.select_rows(index)
        self.rows = [list(self.rows[i]) for i in index.tolist()]
        if self.ids is not None:
            self.ids = self.ids.index_select(0, index.to(self.ids.device))
        self.positions.select_rows(index)

    def clear(self) -> None:
        """Forget all tokens."""
        self.rows, self.coded_tokens, self.ids, self.last_new = [], 0, None, 0
        self.positions = TokenPositions()
        for layer in self.layers:
            layer.reset()

    def exact_tensors(self) -> list[Tensor]:
        """Sinks, recent tokens and what is kept about tokens."""
        found = [t for layer in self.layers for t in layer.tensors()]
        return found + ([] if self.ids is None else [self.ids]) + list(self.positions.tensors().values())
