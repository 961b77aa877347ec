"""Codecs of chunks by name: `LosslessChunks`, which keep every bit, and profiles for serving (`integrations.spectral_chunks`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from spectralquant.errors import PacketError
from spectralquant.integrations.chunk import Chunk, ChunkCodec, ChunkShape
from spectralquant.integrations.spectral_chunks import open_spectral

LOSSLESS = "lossless"


class LosslessChunks:
    """Every bit is kept: safetensors, in the engine's own element type."""

    identity = "lossless-1"
    lossless = True
    granularity = 1

    def require(self, shape: ChunkShape) -> None:
        """Any shape will do."""

    def sample(self, count: int, tokens: int, shape: ChunkShape) -> list[Chunk]:
        """See `ChunkCodec.sample`."""
        return []

    def encode(self, chunks: Sequence[Chunk]) -> list[bytes]:
        """See `ChunkCodec.encode`."""
        return [_serialized(chunk) for chunk in chunks]

    def decode(self, packets: Sequence[bytes | memoryview], shape: ChunkShape) -> list[Chunk]:
        """See `ChunkCodec.decode`."""
        return [_parsed(packet, shape) for packet in packets]


def _serialized(chunk: Chunk) -> bytes:
    from safetensors.torch import save

    named = {f"k{i}": x for i, x in enumerate(chunk.keys)} | {f"v{i}": x for i, x in enumerate(chunk.values)}
    named["start"] = torch.tensor([chunk.start])
    return save({name: x.detach().cpu().contiguous() for name, x in named.items()})


def _parsed(packet: bytes | memoryview, shape: ChunkShape) -> Chunk:
    from safetensors import SafetensorError
    from safetensors.torch import load

    layers = range(len(shape.kv_heads))
    try:
        named = load(bytes(packet))
        start = int(named["start"])
        chunk = Chunk(start, [named[f"k{i}"] for i in layers], [named[f"v{i}"] for i in layers])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise PacketError(f"A lossless chunk cannot be read: {error}.") from error
    whole = [(h, chunk.tokens, d) for h, d in zip(shape.kv_heads, shape.head_dim, strict=True)]
    if any(
        [tuple(x.shape) for x in side] != whole or any(x.dtype != shape.dtype for x in side)
        for side in (chunk.keys, chunk.values)
    ):
        raise PacketError("A lossless chunk is of another shape than the engine's cache.")
    return chunk


def open_codec(name: str | Path, device: str = "cpu") -> ChunkCodec:
    """`lossless`, or the profile for serving at a path (`sq calibrate --for serving` writes one).

    Args:
        name: `lossless` or the profile's path, as `sq calibrate --out` got it.
        device: where the codec works: `cpu`, or `cuda` to code on the engine's own GPU.

    Raises:
        ProfileError: there is no such profile, it is damaged, or it was not made for serving.
    """
    if str(name) == LOSSLESS:
        return LosslessChunks()
    return open_spectral(Path(name), device)
