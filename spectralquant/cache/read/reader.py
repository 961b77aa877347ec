"""`BlockReader`: coded blocks back to keys and values, and the working set of decoded ones."""

from __future__ import annotations

import functools
import time
from itertools import groupby

import torch
from torch import Tensor

from spectralquant.cache.memory import release_free_memory
from spectralquant.cache.report.stats import Spent
from spectralquant.cache.tiers.base import LeavingBlock, ReadScratch, StoredBlock, Tier
from spectralquant.cache.tokens.group import GroupTokens
from spectralquant.cache.tokens.state import CacheState

WORKING = "working"


class BlockReader:
    """Reads blocks of one group of layers, which are numbered from 0 here."""

    def __init__(self, state: CacheState, group: GroupTokens, tiers: dict[str, Tier], spent: Spent) -> None:
        self.state, self.group, self.tiers, self.spent = state, group, tiers, spent
        self._working: dict[StoredBlock, tuple[Tensor, Tensor] | StoredBlock] = {}
        self._scratch: ReadScratch | None = None
        self._runs: list[tuple[str, int, int]] | None = None
        self._in_forward = False

    def begin_forward(self) -> None:
        """Start decoding, ahead of use, what the forward pass is going to read."""
        self._scratch = self._new_scratch()
        self._in_forward, self._runs = True, None
        if "cold" in self.tiers:
            for blocks in self.group.sequences:
                cold = [b for b in blocks if b.tier == "cold" and b not in self._working]
                self.tiers["cold"].prefetch(cold, self._scratch)

    def end_forward(self) -> None:
        """Drop what the forward pass shared between layers."""
        decoded = self._scratch is not None and bool(self._scratch.decoded)
        self._scratch, self._in_forward = None, False
        if decoded and self.group.layers[0].device.type == "cpu":
            release_free_memory()

    def runs(self) -> list[tuple[str, int, int]]:
        """Consecutive blocks that are read alike: (tier or "working", first, one past last)."""
        if not self.group.sequences:
            return []
        if self._in_forward and self._runs is not None:  # blocks change only between forward passes
            return self._runs
        out, at = [], 0
        for kind, group in groupby(self.group.sequences[0], self._kind):
            count = len(list(group))
            out.append((kind, at, at + count))
            at += count
        self._runs = out
        return out

    def _kind(self, block: StoredBlock) -> str:
        kept = self._working.get(block)
        return WORKING if isinstance(kept, tuple) else (kept or block).tier

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
                decoded = [self._working[b] for b in alike]
                parts.append(tuple(torch.cat([h[i][layer].transpose(0, 1) for h in decoded]) for i in range(2)))
            else:
                alike = [self._working.get(b, b) for b in alike]
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

    def fill_working_set(self, limit: int, tier: str = "exact") -> None:
        """Decode warm and cold blocks, newest first, as far as `limit` bytes go; they are kept between forward passes.

        tier: "exact" keeps them as decoded, "warm" keeps cold ones as warm codes, which take a fraction of the memory.
        """
        if not limit or not self.group.sequences:
            return
        if tier == "warm":
            self._fill_with_codes(limit)
            return
        layer = self.group.layers[0]
        for index in reversed(range(len(self.group.sequences[0]))):
            distinct = {blocks[index]: (row, blocks[index]) for row, blocks in enumerate(self.group.sequences)}
            missing = [pair for key, pair in distinct.items() if key not in self._working]
            size = 4 * self.group.geometry.width * layer.dtype.itemsize // 2
            if not missing or missing[0][1].tier not in ("warm", "cold"):
                continue
            if self.working_bytes + size * missing[0][1].tokens * len(missing) > limit:
                break
            begin = time.perf_counter()
            for row, block in missing:
                keys, values = (x.to(layer.dtype).clone() for x in self.whole(row, block))
                self._working[block] = (keys, values)
            self.spent.reconstruct_s += time.perf_counter() - begin

    def _fill_with_codes(self, limit: int) -> None:
        warm = self.tiers["warm"]
        for index in reversed(range(len(self.group.sequences[0]))):
            for row, blocks in enumerate(self.group.sequences):
                block = blocks[index]
                if block in self._working or block.tier != "cold":
                    continue
                if self.working_bytes + warm.page_bytes > limit:
                    return
                begin = time.perf_counter()
                rotations = self.state.rotations(self.group.kind, row, block.start, block.stop)
                self._working[block] = warm.encode(LeavingBlock(*self.whole(row, block), block.start, rotations))
                self.spent.reconstruct_s += time.perf_counter() - begin

    def forget_unused(self) -> None:
        """Drop decoded blocks that no sequence holds any more, and what was shared between reads: sequences may have moved."""
        if not self._in_forward:
            self._scratch = None
        live = {b for blocks in self.group.sequences for b in blocks}
        for key in [k for k in self._working if k not in live]:
            del self._working[key]

    @property
    def working_bytes(self) -> int:
        """Bytes of the working set."""
        return sum(
            kept.nbytes if isinstance(kept, StoredBlock) else sum(t.untyped_storage().nbytes() for t in kept)
            for kept in self._working.values()
        )
