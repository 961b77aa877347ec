"""`cold`: entropy-coded blocks over all layers, in memory or in a memory-mapped packet; decoded when read.

Entropy decoding runs once a block and forward pass (ahead of use, on the reconstructor's threads); each layer then
multiplies only with its own columns of the basis, so dense keys and values of all layers never exist together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from spectralquant.attention.rotary_tables import Places
from spectralquant.cache.lazy import LazySection
from spectralquant.cache.reconstructor import AsyncReconstructor
from spectralquant.cache.tiers.base import LeavingBlock, ReadScratch, StoredBlock, encode_each, whole_from_layers
from spectralquant.codec.coded_block import MAX_TOKENS
from spectralquant.codec.spectral import BlockCoefficients, SpectralCodec
from spectralquant.errors import PacketError

CHUNK_BLOCKS = 8


class ColdTier:
    """Bytes of `SpectralCodec`, wherever they are."""

    name = "cold"

    def __init__(self, codec: SpectralCodec, reconstructor: AsyncReconstructor) -> None:
        self.codec, self.reconstructor = codec, reconstructor

    def encode(self, block: LeavingBlock) -> StoredBlock:
        """Transform, quantize and entropy code the block."""
        return self.from_bytes(self.codec.encode(block.plain()), block.start, block.tokens)

    def encode_run(self, run: LeavingBlock, lengths: Sequence[int]) -> list[StoredBlock]:
        """See `Tier.encode_run`."""
        return encode_each(self, run, lengths)

    def prefetch(self, blocks: Sequence[StoredBlock], scratch: ReadScratch) -> None:
        """Start entropy decoding of blocks that a forward pass is going to read."""
        for block in blocks:
            if block not in scratch.decoded:
                scratch.decoded[block] = self.reconstructor.submit(self._coefficients, block)

    def dense(
        self, layer: int, blocks: Sequence[StoredBlock], places: Places, scratch: ReadScratch
    ) -> tuple[Tensor, Tensor]:
        """See `Tier.dense`."""
        self.prefetch(blocks, scratch)
        g = self.codec.geometry
        parts = []
        for at in range(0, len(blocks), CHUNK_BLOCKS):
            for coded in self._chunk(blocks[at : at + CHUNK_BLOCKS], scratch):
                parts.append(self.codec.layer(coded, layer))
        keys, values = (torch.cat([p[i] for p in parts]).view(-1, g.kv_heads, g.head_dim) for i in range(2))
        return scratch.rotate(keys, places, layer), values

    def _chunk(self, blocks: Sequence[StoredBlock], scratch: ReadScratch) -> list[BlockCoefficients]:
        key = ("chunk", *blocks)
        if key not in scratch.decoded:
            tasks = [scratch.decoded[b] or self.reconstructor.submit(self._coefficients, b) for b in blocks]
            scratch.decoded[key] = joined_coefficients([task.result() for task in tasks])
            for block in blocks:
                scratch.decoded[block] = None  # its chunk has it; another chunk (after a crop) decodes it again
        return scratch.decoded[key]

    def _coefficients(self, block: StoredBlock) -> BlockCoefficients:
        coded = self.codec.coefficients(payload_bytes(block))
        if coded.tokens != block.tokens:
            raise PacketError(f"A block announced {block.tokens} tokens and holds {coded.tokens}.")
        return halved(coded)

    def whole(self, block: StoredBlock, places: Places, scratch: ReadScratch) -> tuple[Tensor, Tensor]:
        """See `Tier.whole`."""
        own = ReadScratch(scratch.rotary)
        return whole_from_layers(self, self.codec.geometry.layers, block, places, own)

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


def halved(coded: BlockCoefficients) -> BlockCoefficients:
    """Coefficients in half precision while they wait: far below the quantizer's error, and half the memory."""
    if coded.y is None or max(float(y.abs().max()) for y in coded.y if y.numel()) > 60_000:
        return coded
    return replace(coded, y=tuple(y.half() for y in coded.y))


def joined_coefficients(parts: Sequence[BlockCoefficients]) -> list[BlockCoefficients]:
    """Consecutive coded blocks as one, so that a layer is one product; raw blocks stay alone."""
    out: list[BlockCoefficients] = []
    run: list[BlockCoefficients] = []
    for part in (*parts, None):
        if part is not None and part.raw is None:
            run.append(part)
            continue
        if run:
            y = tuple(torch.cat([p.y[i] for p in run]) for i in range(2))
            ids = None if run[0].ids is None else torch.cat([p.ids for p in run])
            tokens = [p.tokens for p in run]
            extra = tuple(replace(e, first=sum(tokens[:i])) for i, p in enumerate(run) for e in p.extra)
            out.append(BlockCoefficients(sum(tokens), y, None, ids, run[0].previous_id, None, extra))
            run = []
        if part is not None:
            out.append(part)
    return out
