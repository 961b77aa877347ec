"""A packet's sections into dense tensors, one of keys and values a group of layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spectralquant.codec.block_rotary import rotate_keys
from spectralquant.codec.cold.coded_block import announced_tokens
from spectralquant.codec.cold.fused.decode import FusedDecoder
from spectralquant.codec.cold.fused.layer_slots import LayerSlots, turns_of
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.packet import CODED, EXACT, Section, SpectralPacket
from spectralquant.errors import PacketError
from spectralquant.hooks.rotary_tables import Rotations
from spectralquant.streams import as_caller
from sqkernels.spectral_rows import TokenSlots

RUN_BLOCKS = 16
MOST_READERS = 8
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Unpacking:
    """Sections of one packet. codecs: by group of layers, of those that have coded sections. caches: `[2, L, 1, Hk, T, D]` a group,
    whose first token is `starts[group]`. rotations: of every layer, for all tokens.
    """

    packet: SpectralPacket
    codecs: Mapping[int, SpectralCodec]
    caches: Sequence[Tensor]
    starts: Sequence[int]
    rotations: Rotations

    def run(self, threads: int, progress: Progress) -> None:
        """Fill `caches`.

        Raises:
            PacketError: damaged sections.
        """
        device, total = self.caches[0].device, len(self.packet.sections)
        fused = [run for run in self._fused_runs()]
        taken = {id(s) for run in fused for s in run}
        rest = [s for s in self.packet.sections if id(s) not in taken]
        done = 0
        with ThreadPoolExecutor(max(threads, min(MOST_READERS, os.cpu_count() or 1)) if fused else threads) as pool:
            waiting = pool.map(as_caller(self._place, device), _runs(rest))
            for run in fused:
                self._decode_fused(run, pool)
                done += len(run)
                progress(done, total)
            for count in waiting:
                done += count
                progress(done, total)

    def _fused_runs(self) -> list[list[Section]]:
        """Consecutive coded sections that are decoded straight into `caches`, as many at once as its memory bound allows."""
        out: list[list[Section]] = []
        for s in self.packet.sections:
            decoder = self._decoders.get(s.group)
            if s.kind != CODED or decoder is None or not decoder.takes(self.packet.unchecked(s)[:1]):
                continue
            run = out[-1] if out else []
            joins = run and run[-1].group == s.group and run[-1].start + run[-1].tokens == s.start
            fits = sum(r.tokens for r in run) + s.tokens <= decoder.run_tokens
            run.append(s) if joins and fits else out.append([s])
        return out

    @cached_property
    def _decoders(self) -> dict[int, FusedDecoder]:
        return {i: FusedDecoder(codec) for i, codec in self.codecs.items() if codec.dtype == torch.float16}

    @cached_property
    def _turns(self) -> list:
        return turns_of(self.rotations)

    def _decode_fused(self, run: Sequence[Section], pool: Executor) -> None:
        """Decode while other threads check sums; nothing is written before all of them are right."""
        checked = [pool.submit(self.packet.body, s) for s in run]
        group, first = run[0].group, run[0].start
        decoder, cache = self._decoders[group], self.caches[group]
        try:
            decoded = decoder.decode([_announced(self.packet.unchecked(s), s) for s in run])
        except PacketError:
            for each in checked:  # a wrong checksum says more
                each.result()
            raise
        for each in checked:
            each.result()
        last = run[-1].start + run[-1].tokens
        layers = self.packet.header.all_groups[group].layers
        place = torch.arange(first, last, device=cache.device) - self.starts[group]
        slots = TokenSlots.dense(cache[0, 0], torch.zeros_like(place), place)
        shared = {id(t): t.part(first, last) for t in (self._turns[i] for i in layers) if t is not None}
        turns = [None if self._turns[i] is None else shared[id(self._turns[i])] for i in layers]
        decoder.write(decoded, LayerSlots.of(cache[0].unbind(), cache[1].unbind(), slots, turns))

    def _place(self, run: Sequence[Section]) -> int:
        first, group = run[0].start, run[0].group
        if run[0].kind == EXACT:
            self._put(group, first, *self.packet.exact(run[0], self.caches[group].device))
            return len(run)
        codec, layers = self.codecs[group], self.packet.header.all_groups[group].layers
        for coded in codec.coefficients_run([_announced(self.packet.body(s), s) for s in run]):
            plain, v = codec.decode_coefficients(coded)
            part = slice(first, first + coded.tokens)
            rotations = tuple(None if self.rotations[i] is None else self.rotations[i].part(part) for i in layers)
            self._put(group, first, rotate_keys(rotations, plain).permute(1, 2, 0, 3), v.permute(1, 2, 0, 3))
            first += coded.tokens
        return len(run)

    def _put(self, group: int, first: int, k: Tensor, v: Tensor) -> None:
        part = slice(first - self.starts[group], first - self.starts[group] + k.shape[2])
        for which, x in enumerate((k, v)):
            self.caches[group][which, :, 0, :, part] = x.to(self.caches[group])


def _runs(sections: Sequence[Section]) -> list[list[Section]]:
    """Exact sections alone, coded ones a few at a time."""
    out: list[list[Section]] = []
    for section in sections:
        last = out[-1][-1] if out else None
        follows = last is not None and (last.kind, last.group, last.start + last.tokens) == (
            section.kind,
            section.group,
            section.start,
        )
        more = follows and section.kind == CODED and len(out[-1]) < RUN_BLOCKS
        out[-1].append(section) if more else out.append([section])
    return out


def _announced(data: memoryview, section: Section) -> memoryview:
    if announced_tokens(data) != section.tokens:
        raise PacketError(f"A block announced {section.tokens} tokens and holds {announced_tokens(data)}.")
    return data
