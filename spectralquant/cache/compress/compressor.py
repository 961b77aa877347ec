"""`BlockCompressor`: codes blocks that left the window, and moves older ones down the tiers."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from spectralquant.cache.compress.reconstructor import AsyncReconstructor, Task
from spectralquant.cache.policy import TierPolicy
from spectralquant.cache.read.reader import BlockReader
from spectralquant.cache.report.stats import Spent
from spectralquant.cache.report.uncompressed import RunReport
from spectralquant.cache.tiers.base import LeavingBlock, StoredBlock, Tier
from spectralquant.cache.tokens.group import GroupTokens
from spectralquant.cache.tokens.state import CacheState
from spectralquant.surroundings import own_arithmetic

BACKGROUND_QUERIES = 16
RUN_BLOCKS, RUN_BLOCKS_GPU = 8, 64
NO_IDS = (
    "their token ids were not seen (images, soft prompts, or other input embeddings) and no ids predict them, so the cold tier "
    "would lose part of them. A profile with a warm tier, or one calibrated with --predict none, compresses them"
)


@dataclass(frozen=True)
class CompressionRules:
    """When blocks are coded, and into which tiers; see `SpectralCache`. Numbers of tokens."""

    policy: TierPolicy
    window: int
    compress_from: int
    background: bool
    lag: int


@dataclass
class BlockCompressor:
    """When and into what blocks of one group of layers are coded.

    With `rules.background`, blocks that are due during decoding are coded by a worker and swapped in `lag` tokens later,
    whatever the worker's speed, so that results do not depend on timing.
    """

    state: CacheState
    group: GroupTokens
    tiers: dict[str, Tier]
    reader: BlockReader
    rules: CompressionRules
    worker: AsyncReconstructor
    spent: Spent
    report: RunReport
    _pending: dict[int, list[Task]] = field(default_factory=dict)
    _not_cold: weakref.WeakSet[StoredBlock] = field(default_factory=weakref.WeakSet)

    def after_forward(self) -> None:
        """Let go of what is never read again, code what is due, then apply ages."""
        self.group.forget_unread()
        self._pending = {start: tasks for start, tasks in self._pending.items() if start >= self.group.recent_from}
        late = self.rules.lag if self.rules.background and self.state.last_new <= BACKGROUND_QUERIES else 0
        if late:
            for start, stop in self._due(0):
                if start not in self._pending:
                    self._pending[start] = [
                        self.worker.submit(
                            self.encode,
                            self.state.leaving(self.group, row, start, stop),
                            self.rules.policy.first,
                            in_order=True,
                        )
                        for row in range(len(self.group.sequences))
                    ]
        self._swap(self._due(late))
        self._apply_ages()
        self.reader.forget_unused()

    @own_arithmetic()
    def settle(self) -> None:
        """Finish background work, so that sequences and blocks may change."""
        if self._pending:
            self._swap([r for r in self._due(0) if r[0] in self._pending])
            self._pending.clear()

    def forget_pending(self) -> None:
        """Drop background work whose tokens are about to be removed."""
        self._pending.clear()

    @own_arithmetic()
    def encode(self, block: LeavingBlock, tier: str) -> StoredBlock:
        """Code a block.

        A cold tier that predicts from token ids needs some for tokens whose ids were not seen (inputs_embeds, the exact
        part of a packet), and finds ones that predict them. Where none do (soft prompts), its bases hold only part of the
        block, which goes to the next tier up instead.
        """
        with torch.no_grad():
            if tier == "cold" and not self.state.cold_ready(block.start, block.start + block.tokens):
                ready = self.tiers["cold"].with_ids(block)
                if ready is None:
                    tier = self._above_cold()
                    self.report.other_tier(block.start, block.tokens, "cold", tier, NO_IDS)
                block = block if ready is None else ready
            return self.tiers[tier].encode(block)

    def _above_cold(self) -> str:
        """The tier of a block that cold cannot take; sequences that are read in place must all be hot."""
        names = ("warm", "hot", "exact") if len(self.group.sequences) == 1 else ("warm", "exact")
        return next(name for name in names if name in self.tiers)

    def _due(self, lag: int) -> list[tuple[int, int]]:
        """Ranges of tokens whose time to be coded has come."""
        out: list[tuple[int, int]] = []
        total, start = self.group.total, self.group.next_start
        if not self.group.coded or total < self.rules.compress_from:
            return out
        while total - (stop := self.group.next_stop(start)) >= self.rules.window + lag:
            out.append((start, stop))
            start = stop
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
        at_once = RUN_BLOCKS_GPU if self.group.layers[0].device.type == "cuda" else RUN_BLOCKS
        for first in range(0, len(due), at_once):
            coded += self._encode_run(due[first : first + at_once])
        self.group.append_blocks(coded)
        self.spent.blocks_compressed += len(coded) * len(self.group.sequences)
        self.spent.compress_s += time.perf_counter() - begin

    def _encode_run(self, ranges: Sequence[tuple[int, int]]) -> list[list[StoredBlock]]:
        """Blocks of every sequence for consecutive ranges, a few at once so that a long prompt is not copied whole.

        Where a cold block has to go to another tier, that is decided block by block.
        """
        tier, rows = self.rules.policy.first, range(len(self.group.sequences))
        if tier == "cold" and not self.state.cold_ready(ranges[0][0], ranges[-1][1]):
            return [[self.encode(self.state.leaving(self.group, r, *each), tier) for r in rows] for each in ranges]
        lengths = [stop - start for start, stop in ranges]
        with torch.no_grad():
            whole = (ranges[0][0], ranges[-1][1])
            runs = [self.tiers[tier].encode_run(self.state.leaving(self.group, r, *whole), lengths) for r in rows]
        return [list(blocks) for blocks in zip(*runs, strict=True)]

    @own_arithmetic()
    def demote(self, index: int, tier: str) -> bool:
        """Code block `index` of every sequence again, in another tier; whether that tier could take it."""
        if any(blocks[index] in self._not_cold for blocks in self.group.sequences) and tier == "cold":
            return False
        begin = time.perf_counter()
        recoded: dict[StoredBlock, StoredBlock] = {}
        for row, blocks in enumerate(self.group.sequences):
            block = blocks[index]
            if block not in recoded:
                recoded[block] = self.encode(self.decoded(row, block), tier)
            if recoded[block].tier != tier:
                self._not_cold.add(block)
                return False
        for blocks in self.group.sequences:
            blocks[index] = recoded[blocks[index]]
            self.spent.demotions += 1
        self.reader.forget_unused()
        self.spent.compress_s += time.perf_counter() - begin
        return True

    def decoded(self, row: int, block: StoredBlock) -> LeavingBlock:
        """A coded block as it was before, up to the codec's error."""
        keys, values = self.reader.whole(row, block)
        rotations = self.state.rotations(self.group.kind, row, block.start, block.stop)
        ids = self.state.token_ids(row, block.start, block.stop)
        return LeavingBlock(keys, values, block.start, rotations, None, *ids)

    @own_arithmetic()
    def demote_oldest(self, blocks: int) -> int:
        """Move the oldest `blocks` blocks that can go lower one tier down; returns how many moved."""
        self.settle()
        moved = 0
        for index in range(len(self.group.sequences[0]) if self.group.sequences else 0):
            lower = self.rules.policy.below(self.group.sequences[0][index].tier)
            if moved < blocks and lower is not None:
                moved += self.demote(index, lower)
        return moved

    def _apply_ages(self) -> None:
        if not self.rules.policy.ages or not self.group.sequences:
            return
        for index, block in enumerate(self.group.sequences[0]):
            wanted = self.rules.policy.for_age(self.group.total - block.stop)
            if self.rules.policy.lower(wanted, block.tier):
                self.demote(index, wanted)
