"""What an engine's tier hands to a codec and gets back: chunks of post-RoPE keys and values at known positions.

A tier of a serving engine sees neither token ids nor queries. It knows the pages of keys and values, all layers of them, and
the position of their first token. `ChunkCodec` is everything that the store and the adapters need to know about a codec.
`LosslessChunks` keeps every bit. `spectralquant.integrations.spectral_chunks` is the codec with a profile for serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from spectralquant.errors import InputError, PacketError

LOSSLESS = "lossless"


@dataclass(frozen=True)
class ChunkShape:
    """What an engine's KV cache is made of: L layers that own keys and values, in the model's order, and their element type.

    `kv_heads[l]` and `head_dim[l]` are Hk and D of layer l, of the whole model (all ranks).
    """

    kv_heads: tuple[int, ...]
    head_dim: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values, as the engine holds them."""
        return sum(2 * h * d for h, d in zip(self.kv_heads, self.head_dim, strict=True)) * self.dtype.itemsize


@dataclass(frozen=True)
class Chunk:
    """`tokens` consecutive tokens from position `start`: one key and one value tensor `[Hk, T, D]` a layer, keys post-RoPE.

    Any strides and any device: a codec makes contiguous what it must, and gives back tensors in its own device's memory.
    """

    start: int
    keys: Sequence[Tensor]
    values: Sequence[Tensor]

    @property
    def tokens(self) -> int:
        """T, the same in every layer."""
        return self.keys[0].shape[1]

    @property
    def shape(self) -> ChunkShape:
        """What the chunk's layers look like."""
        return ChunkShape(
            tuple(k.shape[0] for k in self.keys), tuple(k.shape[2] for k in self.keys), self.keys[0].dtype
        )


@runtime_checkable
class ChunkCodec(Protocol):
    """Chunks to bytes and back. Thread-safe: an engine stores in one thread and loads in another.

    identity: names everything that decoding depends on (the codec, its version, the profile's hash). Packets of another
        identity are never read: the store keeps each identity's packets apart.
    lossless: decoding gives back the very bits.
    granularity: a chunk's start and length are multiples of this many tokens.
    """

    identity: str
    lossless: bool
    granularity: int

    def require(self, shape: ChunkShape) -> None:
        """Refuse an engine's KV cache that this codec cannot code; called once, before the first chunk.

        Raises:
            InputError: another number of layers, heads or dimensions, or an element type that is not coded.
        """

    def encode(self, chunks: Sequence[Chunk]) -> list[bytes]:
        """One packet a chunk. Chunks need not follow each other, and each packet decodes by itself."""

    def decode(self, packets: Sequence[bytes], shape: ChunkShape) -> list[Chunk]:
        """The chunks again, in `shape.dtype`.

        Raises:
            PacketError: one of the packets is damaged or of another shape. (The store has verified a checksum before.)
        """


class LosslessChunks:
    """Every bit is kept: safetensors, in the engine's own element type."""

    identity = "lossless-1"
    lossless = True
    granularity = 1

    def require(self, shape: ChunkShape) -> None:
        """Any shape will do."""

    def encode(self, chunks: Sequence[Chunk]) -> list[bytes]:
        """See `ChunkCodec.encode`."""
        return [_serialized(chunk) for chunk in chunks]

    def decode(self, packets: Sequence[bytes], shape: ChunkShape) -> list[Chunk]:
        """See `ChunkCodec.decode`."""
        return [_parsed(packet, shape) for packet in packets]


def _serialized(chunk: Chunk) -> bytes:
    from safetensors.torch import save

    named = {f"k{i}": x for i, x in enumerate(chunk.keys)} | {f"v{i}": x for i, x in enumerate(chunk.values)}
    named["start"] = torch.tensor([chunk.start])
    return save({name: x.detach().cpu().contiguous() for name, x in named.items()})


def _parsed(packet: bytes, shape: ChunkShape) -> Chunk:
    from safetensors import SafetensorError
    from safetensors.torch import load

    layers = range(len(shape.kv_heads))
    try:
        named = load(packet)
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
        InputError: there is no such profile.
        ProfileError: it is damaged, or was not made for serving.
    """
    if str(name) == LOSSLESS:
        return LosslessChunks()
    try:
        from spectralquant.integrations.spectral_chunks import open_spectral
    except ModuleNotFoundError as error:
        raise InputError("This version has no codec for serving yet: use 'lossless'.") from error
    return open_spectral(Path(name), device)
