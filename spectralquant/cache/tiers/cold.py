"""`cold`: entropy-coded blocks over all layers, in memory or in a memory-mapped packet; decoded when read.

Entropy decoding runs once a block and forward pass, some blocks at once (ahead of use, on the reconstructor's threads);
each layer then multiplies only with its own columns of the basis, so dense keys and values of all layers never exist
together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from spectralquant.cache.compress.reconstructor import AsyncReconstructor, Task
from spectralquant.cache.persist.lazy import LazySection
from spectralquant.cache.tiers.base import LeavingBlock, ReadScratch, StoredBlock, block_ranges, whole_from_layers
from spectralquant.cache.tiers.cold_encode import encode_cold
from spectralquant.codec.block_rotary import rotate_keys
from spectralquant.codec.cold.coded_block import MAX_TOKENS
from spectralquant.codec.cold.coefficients import BlockCoefficients, halved
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.cold.token_guess import TokenGuess
from spectralquant.errors import PacketError
from spectralquant.hooks.rotary_tables import Places, Rotations

CHUNK_BLOCKS = 16


@dataclass(frozen=True)
class DecodedPlace:
    """Where a block's coefficients are: the chunk it is decoded with, and its first token there."""

    chunk: Task
    first: int


class ColdTier:
    """Bytes of `SpectralCodec`, wherever they are."""

    name = "cold"

    def __init__(
        self,
        codec: SpectralCodec,
        reconstructor: AsyncReconstructor,
        guess: TokenGuess | None = None,
    ) -> None:
        self.codec, self.reconstructor, self.guess = codec, reconstructor, guess

    def encode(self, block: LeavingBlock) -> StoredBlock:
        """Transform, quantize and entropy code the block."""
        return self.encode_run(block, [block.tokens])[0]

    def with_ids(self, block: LeavingBlock) -> LeavingBlock | None:
        """The block with ids for tokens whose ids were not seen, or None where no ids predict it well (soft prompts)."""
        if self.guess is None:  # no predictor, which would need ids
            return block
        plain = block.plain()
        ids = self.guess.ids(plain)
        fits = self.guess.fits(replace(plain, token_ids=ids))
        return replace(block, token_ids=ids) if fits else None

    def encode_run(self, run: LeavingBlock, lengths: Sequence[int]) -> list[StoredBlock]:
        """See `Tier.encode_run`."""
        coded = encode_cold(self.codec, run, lengths)
        ranges = block_ranges(lengths)
        return [self.from_bytes(d, run.start + a, b - a) for d, (a, b) in zip(coded, ranges, strict=True)]

    def prefetch(self, blocks: Sequence[StoredBlock], scratch: ReadScratch) -> None:
        """Start entropy decoding of blocks that a forward pass is going to read."""
        for chunk in _chunks([b for b in blocks if b not in scratch.decoded]):
            task = self.reconstructor.submit(self._coefficients, chunk)
            first = 0
            for block in chunk:
                scratch.decoded[block] = DecodedPlace(task, first)
                first += block.tokens

    def dense(
        self, layer: int, blocks: Sequence[StoredBlock], places: Places, scratch: ReadScratch
    ) -> tuple[Tensor, Tensor]:
        """See `Tier.dense`."""
        self.prefetch(blocks, scratch)
        g = self.codec.geometry
        parts = [self.codec.layer(coded, layer) for coded in _wanted(blocks, scratch.decoded)]
        keys, values = (torch.cat([p[i] for p in parts]).view(-1, g.kv_heads, g.head_dim) for i in range(2))
        return scratch.rotate(keys, places, layer), values

    def whole_run(
        self, blocks: Sequence[StoredBlock], rotations: Rotations, known: Mapping[StoredBlock, DecodedPlace]
    ) -> tuple[Tensor, Tensor]:
        """Keys (after RoPE) and values `[L, Hk, T, D]` of consecutive blocks, in this thread; known: where some are decoded already."""
        coded: list[BlockCoefficients] = []
        for have, some in groupby(blocks, lambda b: b in known):
            run = list(some)
            coded += _wanted(run, known) if have else self._coefficients(run)
        both = [self.codec.decode_coefficients(c) for c in coded]
        keys, values = (torch.cat([pair[i] for pair in both]) for i in range(2))
        return rotate_keys(rotations, keys).permute(1, 2, 0, 3), values.permute(1, 2, 0, 3)

    def _coefficients(self, blocks: Sequence[StoredBlock]) -> list[BlockCoefficients]:
        data = [payload_bytes(block) for block in blocks]
        for block, part in zip(blocks, data, strict=True):
            if self.codec.announced(part) != block.tokens:
                raise PacketError(f"A block of {block.tokens} tokens holds {self.codec.announced(part)}.")
        return [halved(coded, self.codec.dtype) for coded in self.codec.coefficients_run(data)]

    def whole(self, block: StoredBlock, places: Places, scratch: ReadScratch) -> tuple[Tensor, Tensor]:
        """See `Tier.whole`."""
        own = ReadScratch(scratch.rotary)
        return whole_from_layers(self, self.codec.geometry.layers, [block], places, own)

    def to_bytes(self, block: StoredBlock) -> bytes:
        """The coded bytes."""
        return bytes(payload_bytes(block))

    def from_bytes(self, data: bytes | memoryview, start: int, tokens: int) -> StoredBlock:
        """A block of coded bytes.

        Raises:
            PacketError: more tokens than these bytes can hold.
        """
        data = bytes(data)
        if not 0 < tokens <= MAX_TOKENS or len(data) < self.codec.least_bytes(tokens):
            raise PacketError(f"A cold block of {len(data)} bytes cannot hold {tokens} tokens.")
        return StoredBlock(self.name, start, tokens, data, len(data))


def payload_bytes(block: StoredBlock) -> bytes | memoryview:
    """A cold block's bytes, read (and checked) from its packet file on first use."""
    return block.payload.read() if isinstance(block.payload, LazySection) else block.payload


def _chunks(blocks: Sequence[StoredBlock]) -> Iterator[list[StoredBlock]]:
    """Consecutive blocks, as many as are decoded at once."""
    chunk: list[StoredBlock] = []
    for block in blocks:
        if chunk and (len(chunk) == CHUNK_BLOCKS or chunk[-1].stop != block.start):
            yield chunk
            chunk = []
        chunk.append(block)
    if chunk:
        yield chunk


def coefficient_bytes(places: Iterable[DecodedPlace]) -> int:
    """Bytes of the coefficients that are decoded at some places."""
    chunks = {id(p.chunk): p.chunk for p in places}.values()
    parts = [t for chunk in chunks for coded in chunk.result() for t in (coded.y or (coded.raw,))]
    return sum(t.untyped_storage().nbytes() for t in parts)


def _wanted(blocks: Sequence[StoredBlock], decoded: Mapping[StoredBlock, DecodedPlace]) -> Iterator[BlockCoefficients]:
    """Coefficients of the blocks, in order, with as few parts as their chunks allow."""
    spans: list[tuple[Task, int, int]] = []
    for block in blocks:
        place = decoded[block]
        end = place.first + block.tokens
        if spans and spans[-1][0] is place.chunk and spans[-1][2] == place.first:
            spans[-1] = (place.chunk, spans[-1][1], end)
        else:
            spans.append((place.chunk, place.first, end))
    for task, first, last in spans:
        at = 0
        for coded in task.result():
            begin, end = max(first, at), min(last, at + coded.tokens)
            if begin < end:
                yield coded.part(begin - at, end - at)
            at += coded.tokens
