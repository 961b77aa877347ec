"""`BlockCompressor`: codes blocks that left the window, and moves older ones down the tiers."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from spectralquant.cache.policy import TierPolicy
from spectralquant.cache.reading import BlockReader
from spectralquant.cache.reconstructor import AsyncReconstructor, Task
from spectralquant.cache.state import CacheState
from spectralquant.cache.stats import Spent
from spectralquant.cache.tiers.base import LeavingBlock, StoredBlock, Tier
from spectralquant.cache.uncompressed import RunReport
from spectralquant.codec.block import SINKS

BACKGROUND_QUERIES = 16
RUN_BLOCKS = 8


@dataclass
class BlockCompressor:
    """When and into what blocks are coded.

    With `background`, blocks that are due during decoding are coded by a worker and swapped in `lag` tokens later,
    whatever the worker's speed, so that results do not depend on timing.
    """

    state: CacheState
    tiers: dict[str, Tier]
    policy: TierPolicy
    reader: BlockReader
    worker: AsyncReconstructor
    spent: Spent
    window: int
    compress_from: int
    background: bool
    lag: int
    over_budget: bool = False
    report: RunReport | None = None
    _pending: dict[int, list[Task]] = field(default_factory=dict)

    def after_forward(self, held_bytes: Callable[[], int]) -> None:
        """Code what is due, then apply ages and the memory budget."""
        late = self.lag if self.background and self.state.last_new <= BACKGROUND_QUERIES else 0
        if late:
            for start, stop in self._due(0):
                if start not in self._pending:
                    self._pending[start] = [
                        self.worker.submit(
                            self.encode, self.state.leaving(row, start, stop), self.policy.first, in_order=True
                        )
                        for row in range(len(self.state.rows))
                    ]
        self._swap(self._due(late))
        self._apply_ages()
        self._apply_budget(held_bytes)
        self.reader.fill_working_set()

    def settle(self) -> None:
        """Finish background work, so that rows and blocks may change."""
        if self._pending:
            self._swap([r for r in self._due(0) if r[0] in self._pending])
            self._pending.clear()

    def forget_pending(self) -> None:
        """Drop background work whose tokens are about to be removed."""
        self._pending.clear()

    def encode(self, block: LeavingBlock, tier: str) -> StoredBlock:
        """Code a block.

        A cold tier that predicts from token ids cannot code tokens whose ids were not seen (inputs_embeds, the exact part
        of a packet): its bases hold only what the prediction leaves. Such a block goes to the next tier up instead.
        """
        if tier == "cold" and not self.state.cold_ready(block.start, block.start + block.tokens):
            tier = next(name for name in ("warm", "hot", "exact") if name in self.tiers)
        with torch.no_grad():
            return self.tiers[tier].encode(block)

    def _due(self, lag: int) -> list[tuple[int, int]]:
        """Ranges of tokens whose time to be coded has come."""
        out: list[tuple[int, int]] = []
        total, stop = self.state.total, self.state.coded_stop
        if total < self.compress_from:
            return out
        while total - self.state.next_stop(stop) >= self.window + lag:
            out.append((max(SINKS, stop), self.state.next_stop(stop)))
            stop = self.state.next_stop(stop)
        return out

    def _swap(self, ranges: Sequence[tuple[int, int]]) -> None:
        if not ranges:
            return
        begin = time.perf_counter()
        coded: list[list[StoredBlock]] = []
        waiting = [r for r in ranges if r[0] in self._pending]
        for start, _ in waiting:
            wait = time.perf_counter()
            coded.append([task.result() for task in self._pending.pop(start)])
            self.spent.wait_s += time.perf_counter() - wait
        due = ranges[len(waiting) :]
        for first in range(0, len(due), RUN_BLOCKS):
            coded += self._encode_run(due[first : first + RUN_BLOCKS])
        self.state.append_blocks(coded)
        self.spent.blocks_compressed += len(coded) * len(self.state.rows)
        self.spent.compress_s += time.perf_counter() - begin

    def _encode_run(self, ranges: Sequence[tuple[int, int]]) -> list[list[StoredBlock]]:
        """Blocks of every sequence for consecutive ranges, a few at once so that a long prompt is not copied whole.

        Where a cold block has to go to another tier, that is decided block by block.
        """
        tier, rows = self.policy.first, range(len(self.state.rows))
        if tier == "cold" and not all(self.state.cold_ready(*each) for each in ranges):
            return [[self.encode(self.state.leaving(r, *each), tier) for r in rows] for each in ranges]
        lengths = [stop - start for start, stop in ranges]
        with torch.no_grad():
            runs = [
                self.tiers[tier].encode_run(self.state.leaving(r, ranges[0][0], ranges[-1][1]), lengths) for r in rows
            ]
        return [list(blocks) for blocks in zip(*runs, strict=True)]

    def demote(self, index: int, tier: str) -> bool:
        """Code block `index` of every sequence again, in another tier; whether that tier could take it."""
        first = self.state.rows[0][index]
        if tier == "cold" and not self.state.cold_ready(first.start, first.stop):
            return False
        begin = time.perf_counter()
        made: dict[StoredBlock, StoredBlock] = {}
        for row, blocks in enumerate(self.state.rows):
            block = blocks[index]
            if block not in made:
                made[block] = self.encode(self.decoded(row, block), tier)
            blocks[index] = made[block]
            self.spent.demotions += 1
        self.reader.forget_unused()
        self.spent.compress_s += time.perf_counter() - begin
        return True

    def decoded(self, row: int, block: StoredBlock) -> LeavingBlock:
        """A coded block as it was before, up to the codec's error."""
        keys, values = self.reader.whole(row, block)
        rotations = self.state.binding.tables(self.state.positions.places(row, block.start, block.stop))
        ids = self.state.token_ids(row, block.start, block.stop)
        return LeavingBlock(keys, values, block.start, rotations, None, *ids)

    def evict(self, blocks: int) -> int:
        """Move the oldest `blocks` blocks that can go lower one tier down; returns how many moved."""
        self.settle()
        moved = 0
        for index in range(len(self.state.rows[0]) if self.state.rows else 0):
            lower = self.policy.below(self.state.rows[0][index].tier)
            if moved < blocks and lower is not None:
                moved += self.demote(index, lower)
        return moved

    def _apply_ages(self) -> None:
        if not self.policy.ages or not self.state.rows:
            return
        for index, block in enumerate(self.state.rows[0]):
            wanted = self.policy.for_age(self.state.total - block.stop)
            if self.policy.lower(wanted, block.tier):
                self.demote(index, wanted)

    def _apply_budget(self, held_bytes: Callable[[], int]) -> None:
        limit = self.policy.max_bytes
        while limit is not None and held_bytes() > limit:
            if self.evict(1):
                continue
            if not self.over_budget:
                warnings.warn(
                    f"SpectralCache holds {held_bytes():,} bytes, over max_bytes={limit:,}, with all blocks in the lowest "
                    "tier of the profile. Allow more, or calibrate a lower tier.",
                    stacklevel=2,
                )
            self.over_budget = True
            return
