"""`BlockReader`: coded blocks back to keys and values, and the working set of decoded ones."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from spectralquant.cache.memory import release_free_memory
from spectralquant.cache.read.working_set import Decoded, WorkingSet
from spectralquant.cache.report.stats import Spent
from spectralquant.cache.tiers.base import ReadScratch, StoredBlock, Tier
from spectralquant.cache.tokens.group import GroupTokens
from spectralquant.cache.tokens.state import CacheState

WORKING, MIXED = "working", "mixed"


class BlockReader:
    """Reads blocks of one group of layers, which are numbered from 0 here."""

    def __init__(
        self,
        state: CacheState,
        group: GroupTokens,
        tiers: dict[str, Tier],
        spent: Spent,
        working: WorkingSet | None = None,
    ) -> None:
        self.state, self.group, self.tiers, self.spent = state, group, tiers, spent
        self.working = WorkingSet(state, group, tiers, spent) if working is None else working
        self._decoded: Decoded = {}
        self._scratch: ReadScratch | None = None
        self._runs: list[tuple[str, int, int]] | None = None
        self._in_forward = False

    def begin_forward(self) -> None:
        """Start decoding, ahead of use, what the forward pass is going to read."""
        self._scratch = self._new_scratch()
        self._in_forward, self._runs = True, None
        self.working.lend(self._scratch)
        if "cold" in self.tiers:
            for blocks in self.group.sequences:
                cold = [b for b in blocks if b.tier == "cold" and b not in self.working.kept]
                self.tiers["cold"].prefetch(cold, self._scratch)

    def end_forward(self) -> None:
        """Drop what the forward pass shared between layers."""
        decoded = self._scratch is not None and bool(self._scratch.decoded)
        self._decoded = self._scratch.decoded if decoded and self.working.wanted else {}
        self._scratch, self._in_forward = None, False
        if decoded and self.group.layers[0].device.type == "cpu":
            release_free_memory()

    def runs(self) -> list[tuple[str, int, int]]:
        """Consecutive blocks that are read alike: (tier, "working" or "mixed", first, one past last)."""
        if not self.group.sequences:
            return []
        if self._in_forward and self._runs is not None:  # blocks change only between forward passes
            return self._runs
        out, at = [], 0
        for kind, group in groupby(zip(*self.group.sequences, strict=True), self._kind_of_all):
            count = len(list(group))
            out.append((kind, at, at + count))
            at += count
        self._runs = out
        return out

    def _kind(self, block: StoredBlock) -> str:
        kept = self.working.kept.get(block)
        return WORKING if isinstance(kept, tuple) else (kept or block).tier

    def _kind_of_all(self, blocks: tuple[StoredBlock, ...]) -> str:
        """Of the blocks of all sequences at one place."""
        kinds = {self._kind(block) for block in blocks}
        return kinds.pop() if len(kinds) == 1 else MIXED

    def codes(self, blocks: Sequence[StoredBlock]) -> list[StoredBlock]:
        """Blocks as they are read: the codes of the working set where it has some."""
        return [kept if isinstance(kept := self.working.kept.get(b), StoredBlock) else b for b in blocks]

    def read(self, layer: int, row: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Keys (after RoPE) and values `[S, Hk, D]` of blocks first … last of one sequence and layer."""
        begin = time.perf_counter()
        if self._scratch is None:
            self._scratch = self._new_scratch()
        blocks = self.group.sequences[row][first:last]
        parts: list[tuple[Tensor, Tensor]] = []
        for kind, group in groupby(blocks, self._kind):
            alike = list(group)
            if kind == WORKING:
                decoded = [self.working.kept[b] for b in alike]
                parts.append(tuple(torch.cat([h[i][layer].transpose(0, 1) for h in decoded]) for i in range(2)))
            else:
                alike = self.codes(alike)
                places = self.state.positions.places(row, alike[0].start, alike[-1].stop)
                parts.append(self.tiers[kind].dense(layer, alike, places, self._scratch))
        self.spent.reconstruct_s += time.perf_counter() - begin
        return parts[0] if len(parts) == 1 else tuple(torch.cat([p[i] for p in parts]) for i in range(2))

    def whole(self, row: int, block: StoredBlock) -> tuple[Tensor, Tensor]:
        """Keys (after RoPE) and values `[L, Hk, T, D]` of one block."""
        places = self.state.positions.places(row, block.start, block.stop)
        return self.tiers[block.tier].whole(block, places, self._new_scratch())

    def _new_scratch(self) -> ReadScratch:
        return ReadScratch(functools.partial(self.state.tables, self.group.kind))

    def fill_working_set(self, limit: int) -> None:
        """See `WorkingSet.fill`."""
        if self.working.wanted:
            self.working.fill(limit, self._decoded)
        self._decoded, self._runs = {}, None

    def forget_unused(self) -> None:
        """Drop decoded blocks that no sequence holds any more, and what was shared between reads: sequences may have moved."""
        if not self._in_forward:
            self._scratch = None
        self.working.forget_unused()

    @property
    def working_bytes(self) -> int:
        """Bytes of the working set."""
        return self.working.nbytes
