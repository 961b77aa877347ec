"""`ServingCodec`: chunks of a serving engine's cache to bytes and back.

A tier of an engine knows keys after RoPE, values, and where a chunk's first token stands: no token ids, no queries. So RoPE
is undone with the profile's own frequencies (cos and sin rounded as the engine's are, so that undoing is the exact inverse),
there is no prediction from tokens, and importance is what keys and values tell by themselves. Attention sinks, the first four
tokens of a text, stay as they are, bit by bit. Every chunk decodes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import rotate_keys, unrotate_keys
from spectralquant.codec.cold.coded_block import MAX_TOKENS, RAW_DTYPES
from spectralquant.codec.cold.fused.decode import DecodedRun, FusedDecoder
from spectralquant.codec.cold.fused.encode import BlockRun, FusedEncoder
from spectralquant.codec.cold.fused.layer_slots import LayerSlots, padded, turns_of
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.serving import chunk_bytes
from spectralquant.codec.serving.chunk_bytes import ChunkParts
from spectralquant.errors import PacketError
from spectralquant.geometry import SINKS
from spectralquant.hooks.rotary_frequencies import RotaryFrequencies
from spectralquant.hooks.rotary_tables import Rotations
from sqkernels.spectral_rows import TokenSlots

SAMPLE_SPARSITY = 4


@dataclass(frozen=True)
class KVChunk:
    """Keys (after RoPE) and values `[L, Hk, T, D]` of T consecutive tokens, the first at position `start`."""

    start: int
    keys: Tensor
    values: Tensor

    @property
    def tokens(self) -> int:
        return self.keys.shape[2]

    @property
    def exact(self) -> int:
        """How many tokens, from the first on, are sinks."""
        return min(self.tokens, max(0, SINKS - self.start))


class ServingCodec:
    """Codes chunks by a cold codec that needs no token ids, and a model's rotary frequencies."""

    def __init__(self, codec: SpectralCodec, rotary: RotaryFrequencies) -> None:
        if codec.features is not None:
            raise ValueError("a codec that predicts from token ids cannot code chunks, which have none")
        self.codec, self.rotary, self.device = codec, rotary.to(codec.device), codec.device
        self.fused = codec.dtype == torch.float16
        self.encoder = FusedEncoder(codec) if self.fused and codec.bound is None else None
        self.decoder = FusedDecoder(codec) if self.fused else None

    def encode(self, chunks: Sequence[KVChunk]) -> list[bytes]:
        """Bytes of each chunk. One that cannot be coded, or would not shrink, is held exactly."""
        jobs = [(c, first, last) for c in chunks for first, last in pieces(c)]
        return joined(chunks, self._blocks(jobs))

    def _blocks(self, jobs: Sequence[tuple[KVChunk, int, int]]) -> list[bytes]:
        if not jobs:
            return []
        if self.encoder is None:
            return self.codec.encode_run([self._plain(*job) for job in jobs])
        coded = self.encoder.encode(self._run(jobs))
        return [self.codec.encode(self._plain(*job)) if d is None else d for job, d in zip(jobs, coded, strict=True)]

    def _plain(self, chunk: KVChunk, first: int, last: int) -> KVBlock:
        """Tokens first … last as codecs take them."""
        keys, values = (
            x[:, :, first:last].to(self.device, torch.float32).permute(2, 0, 1, 3) for x in (chunk.keys, chunk.values)
        )
        turned = self._rotations(chunk.start + first, chunk.start + last, chunk.keys.dtype)
        return KVBlock(unrotate_keys(turned, keys), values, chunk.start + first)

    def _run(self, jobs: Sequence[tuple[KVChunk, int, int]]) -> BlockRun:
        """All at once for the fused encoder: tokens side by side."""
        keys, values = (
            [
                x[None]
                for x in torch.cat(
                    [getattr(c, kind)[:, :, a:b].to(self.device) for c, a, b in jobs], dim=2
                ).contiguous()
            ]
            for kind in ("keys", "values")
        )
        positions = torch.cat([torch.arange(c.start + a, c.start + b) for c, a, b in jobs])
        turns = turns_of(self.rotary(positions, jobs[0][0].keys.dtype))
        lengths = [b - a for _, a, b in jobs]
        return BlockRun(LayerSlots.of(keys, values, _slots(keys[0]), turns), lengths, [None] * len(jobs))

    def _rotations(self, first: int, last: int, dtype: torch.dtype) -> Rotations:
        return self.rotary(torch.arange(first, last), dtype)

    def decode(self, packets: Sequence[bytes | memoryview], dtype: torch.dtype) -> list[KVChunk]:
        """The chunks again, in `dtype` (which is the engine's) on the codec's device.

        Raises:
            PacketError: damaged bytes, or those of another model.
        """
        g = self.codec.geometry
        split = [chunk_bytes.split(data, g.layers, g.kv_heads, g.head_dim) for data in packets]
        for parts in split:
            told = [self.codec.announced(b) for b in parts.blocks]
            if told != [b - a for a, b in _pieces(parts.exact.shape[3], parts.tokens)]:
                raise PacketError(f"The blocks of a chunk hold {told} tokens, not {parts.tokens} with its exact ones.")
        whole = [parts for parts in split if parts.blocks]
        keys, values = self._decoded(whole, dtype) if whole else (None, None)
        out, at = [], 0
        for parts in split:
            exact = parts.exact.to(self.device, dtype)
            count = parts.tokens - exact.shape[3]
            both = [exact[0], exact[1]]
            if keys is not None and values is not None and count:
                coded = (x[:, :, at : at + count] for x in (keys, values))
                both = [
                    torch.cat(pair, dim=2) if exact.shape[3] else pair[1] for pair in zip(exact, coded, strict=True)
                ]
                at += count
            out.append(KVChunk(parts.start, both[0], both[1]))
        return out

    def _decoded(self, chunks: Sequence[ChunkParts], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values `[L, Hk, N, D]` of the coded tokens of all chunks, side by side."""
        blocks = [b for parts in chunks for b in parts.blocks]
        for block in blocks:
            if len(block) < self.codec.least_bytes(self.codec.announced(block)):
                raise PacketError(f"A block of {len(block)} bytes cannot hold {self.codec.announced(block)} tokens.")
        places = [torch.arange(p.start + p.exact.shape[3], p.start + p.tokens) for p in chunks]
        rotations = self.rotary(torch.cat(places), dtype)
        if self.decoder is not None and all(map(self.decoder.takes, blocks)):
            return self._written(self.decoder, self.decoder.decode(blocks), rotations, dtype)
        some = [self.codec.decode_coefficients(coded) for coded in self.codec.coefficients_run(blocks)]
        plain, values = (torch.cat([pair[i] for pair in some]) for i in range(2))
        keys = rotate_keys(rotations, plain).to(dtype)
        return keys.permute(1, 2, 0, 3), values.to(dtype).permute(1, 2, 0, 3)

    def _written(
        self, decoder: FusedDecoder, run: DecodedRun, rotations: Rotations, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Keys and values `[L, Hk, N, D]` of a run."""
        g = self.codec.geometry
        keys, values = (
            torch.empty(g.layers, g.kv_heads, run.tokens, g.head_dim, dtype=dtype, device=self.device) for _ in range(2)
        )
        layers = [x[None] for x in keys], [x[None] for x in values]
        decoder.write(run, LayerSlots.of(*layers, _slots(layers[0][0]), turns_of(rotations)))
        return keys, values

    def sample(self, count: int, tokens: int, dtype: torch.dtype) -> list[KVChunk]:
        """Chunks of the profile's spread: two steps up or down in one of `SAMPLE_SPARSITY` components of each token, else its mean.
        None with a codec in float32, which compiles nothing."""
        if self.decoder is None:
            return []
        total = count * tokens
        draw = torch.Generator(self.device).manual_seed(0)
        drawn = torch.randint(
            2 * SAMPLE_SPARSITY,
            (self.decoder.rows, padded(total)),
            generator=draw,
            device=self.device,
            dtype=torch.int8,
        )
        coefficients = ((drawn == 0).half() - (drawn == 1).half()).mul_(2 * self.decoder.scale.half()[:, None])
        run = DecodedRun(coefficients, total, 1.0, None)
        keys, values = self._written(self.decoder, run, self._rotations(0, total, dtype), dtype)
        return [
            KVChunk(at, keys[:, :, at : at + tokens], values[:, :, at : at + tokens]) for at in range(0, total, tokens)
        ]


def joined(chunks: Sequence[KVChunk], blocks: Sequence[bytes]) -> list[bytes]:
    """Bytes of chunks whose `pieces` are coded as `blocks`, one after the other."""
    coded, out = iter(blocks), []
    for chunk in chunks:
        own = [next(coded) for _ in pieces(chunk)]
        data = chunk_bytes.join(ChunkParts(chunk.start, chunk.tokens, _exact(chunk, chunk.exact), own))
        raw = any(block[0] in RAW_DTYPES for block in own)
        if raw or len(data) >= 2 * chunk.keys.numel() * chunk.keys.itemsize:
            data = chunk_bytes.join(ChunkParts(chunk.start, chunk.tokens, _exact(chunk, chunk.tokens), []))
        out.append(data)
    return out


def pieces(chunk: KVChunk) -> list[tuple[int, int]]:
    """First and one past the last token of each block of a chunk, sinks left out."""
    return _pieces(chunk.exact, chunk.tokens)


def _pieces(first: int, tokens: int) -> list[tuple[int, int]]:
    return [(at, min(tokens, at + MAX_TOKENS)) for at in range(first, tokens, MAX_TOKENS)]


def _exact(chunk: KVChunk, count: int) -> Tensor:
    return torch.stack([chunk.keys[:, :, :count], chunk.values[:, :, :count]])


def _slots(layer: Tensor) -> TokenSlots:
    place = torch.arange(layer.shape[2], device=layer.device)
    return TokenSlots.dense(layer, torch.zeros_like(place), place)
