"""`WorkingSet`: warm and cold blocks that are kept between forward passes in a form that reads fast.

Blocks of a cold cache are entropy decoded for the pass that reads them first. With work in the background their coefficients stay
until a worker (on a GPU: a stream of its own) has made what is kept of them, so that every block is decoded once. What was begun after
one pass is swapped in `LAG` passes later, whatever the worker's speed: results do not depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spectralquant.cache.compress.reconstructor import AsyncReconstructor, Task
from spectralquant.cache.report.stats import Spent
from spectralquant.cache.tiers.base import LeavingBlock, ReadScratch, StoredBlock, Tier, block_ranges, whole_from_layers
from spectralquant.cache.tiers.cold import ColdTier, DecodedPlace, coefficient_bytes
from spectralquant.cache.tokens.group import GroupTokens
from spectralquant.cache.tokens.state import CacheState
from spectralquant.hooks.rotary_tables import Places, Rotations
from spectralquant.surroundings import own_arithmetic

LAG = 8
MOST_RUNS = 24
RUN_BLOCKS = 8
Decoded = Mapping[StoredBlock, DecodedPlace]
Kept = tuple[Tensor, Tensor] | StoredBlock  # keys (after RoPE) and values `[L, Hk, T, D]`, or codes


@dataclass
class _Run:
    """Consecutive blocks in work. age: passes since it was begun. reserved: bytes that it will take. places: of its coefficients."""

    blocks: list[StoredBlock]
    task: Task
    reserved: int
    places: dict[StoredBlock, DecodedPlace]
    age: int = 0


@dataclass
class WorkingSet:
    """Of one group of layers, newest blocks first.

    tier: "exact" keeps blocks as decoded, in the model's dtype; "warm" and "hot" keep cold ones as codes of those tiers. worker: None
    does the work at once, after the pass. wanted: whether there is a working set at all.
    """

    state: CacheState
    group: GroupTokens
    tiers: dict[str, Tier]
    spent: Spent
    tier: str = "exact"
    worker: AsyncReconstructor | None = None
    wanted: bool = False
    kept: dict[StoredBlock, Kept] = field(default_factory=dict)
    _runs: list[_Run] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return sum(
            k.nbytes if isinstance(k, StoredBlock) else sum(t.untyped_storage().nbytes() for t in k)
            for k in self.kept.values()
        )

    @property
    def waiting_bytes(self) -> int:
        """Bytes of coefficients that wait for a worker."""
        return coefficient_bytes(p for run in self._runs for p in run.places.values())

    def lend(self, scratch: ReadScratch) -> None:
        """Before a pass: give it the coefficients that are there."""
        for run in self._runs:
            scratch.decoded.update(run.places)

    @own_arithmetic()
    def fill(self, limit: int, decoded: Decoded) -> None:
        """After a pass: swap in what is due, then begin with what is missing, up to `limit` bytes. decoded: by the pass."""
        for run in self._runs:
            run.age += 1
        due = [run for run in self._runs if run.age >= LAG]
        self._runs = [run for run in self._runs if run.age < LAG]
        for run in due:
            self._take(run)
        if not self.group.sequences:
            return
        for blocks, row in self._missing():
            fitting = self._fitting(blocks, limit)
            if not fitting or len(self._runs) >= MOST_RUNS:
                break
            self._begin(fitting, row, decoded)

    def forget_unused(self) -> None:
        """Drop blocks that no sequence holds any more."""
        live = {b for blocks in self.group.sequences for b in blocks}
        for block in [b for b in self.kept if b not in live]:
            del self.kept[block]
        self._runs = [run for run in self._runs if any(b in live for b in run.blocks)]

    def settle(self) -> None:
        """Wait for all that was begun and swap it in."""
        runs, self._runs = self._runs, []
        for run in runs:
            self._take(run)

    def _take(self, run: _Run) -> None:
        begin = time.perf_counter()
        made = run.task.result()
        self.spent.wait_s += time.perf_counter() - begin
        live = {b for blocks in self.group.sequences for b in blocks}
        self.kept.update((b, k) for b, k in zip(run.blocks, made, strict=True) if b in live)

    def _missing(self) -> Iterator[tuple[list[StoredBlock], int]]:
        """Consecutive blocks that are neither kept nor in work, newest first, and a sequence that has them."""
        takes = ("cold",) if self.tier != "exact" else ("warm", "cold")
        seen = {b for run in self._runs for b in run.blocks} | set(self.kept)
        count = len(self.group.sequences[0])
        for last in range(count, 0, -RUN_BLOCKS):
            for row, blocks in enumerate(self.group.sequences):
                some = blocks[max(0, last - RUN_BLOCKS) : last]
                wanted = [b for b in some if b.tier in takes and b not in seen]
                seen.update(wanted)
                for run in _alike(wanted):
                    yield run, row

    def _fitting(self, blocks: list[StoredBlock], limit: int) -> list[StoredBlock]:
        """The newest of some blocks that fit."""
        room = limit - self.nbytes - sum(run.reserved for run in self._runs)
        while blocks and sum(map(self._size, blocks)) > room:
            blocks = blocks[1:]
        return blocks

    def _begin(self, blocks: list[StoredBlock], row: int, decoded: Decoded) -> None:
        places = self.state.positions.places(row, blocks[0].start, blocks[-1].stop)
        known = {b: decoded[b] for b in blocks if b in decoded}
        if self.worker is not None:
            rotations = self.state.tables(self.group.kind, places)
            task = self.worker.submit(self._make, blocks, places, rotations, known, in_order=True)
            self._runs.append(_Run(blocks, task, sum(map(self._size, blocks)), known))
            return
        begin = time.perf_counter()
        made = self._make(blocks, places, self.state.tables(self.group.kind, places), known)
        self.kept.update(zip(blocks, made, strict=True))
        self.spent.reconstruct_s += time.perf_counter() - begin

    def _size(self, block: StoredBlock) -> int:
        if self.tier != "exact":
            return self.tiers[self.tier].page_bytes
        return 4 * self.group.geometry.width * self.group.layers[0].dtype.itemsize // 2 * block.tokens

    @torch.no_grad()
    @own_arithmetic()
    def _make(self, blocks: Sequence[StoredBlock], places: Places, rotations: Rotations, known: Decoded) -> list[Kept]:
        """What is kept of consecutive blocks of one tier."""
        tier, lengths = self.tiers[blocks[0].tier], [b.tokens for b in blocks]
        if isinstance(tier, ColdTier):
            keys, values = tier.whole_run(blocks, rotations, known)
        else:
            scratch = ReadScratch(lambda _: rotations)
            keys, values = whole_from_layers(tier, len(self.group.layers), blocks, places, scratch)
        if self.tier == "exact":
            dtype = self.group.layers[0].dtype
            parts = [[x[:, :, a:b].to(dtype).clone() for x in (keys, values)] for a, b in block_ranges(lengths)]
            return [(k, v) for k, v in parts]
        return list(self.tiers[self.tier].encode_run(LeavingBlock(keys, values, blocks[0].start, rotations), lengths))


def _alike(blocks: Sequence[StoredBlock]) -> list[list[StoredBlock]]:
    """Consecutive blocks of one tier."""
    out: list[list[StoredBlock]] = []
    for block in blocks:
        joins = out and out[-1][-1].stop == block.start and out[-1][-1].tier == block.tier
        out[-1].append(block) if joins else out.append([block])
    return out
