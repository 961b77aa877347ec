"""What an engine's tier hands to a codec and gets back: chunks of post-RoPE keys and values at known positions.

A tier of a serving engine sees neither token ids nor queries. It knows the pages of keys and values, all layers of them, and
the position of their first token. `ChunkCodec` is everything that the store and the adapters need to know about a codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


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
    """`tokens` consecutive tokens from position `start`: one key and one value tensor `[Hk, T, D]` a layer, or all of them in one
    `[L, Hk, T, D]`; keys post-RoPE.

    Any strides and any device: a codec makes contiguous what it must, and gives back tensors in its own device's memory.
    """

    start: int
    keys: Sequence[Tensor] | Tensor
    values: Sequence[Tensor] | Tensor

    @property
    def tokens(self) -> int:
        """T, the same in every layer."""
        return self.keys.shape[2] if isinstance(self.keys, Tensor) else self.keys[0].shape[1]

    @property
    def shape(self) -> ChunkShape:
        """What the chunk's layers look like."""
        if isinstance(self.keys, Tensor):
            layers, heads, _, dim = self.keys.shape
            return ChunkShape((heads,) * layers, (dim,) * layers, self.keys.dtype)
        return ChunkShape(
            tuple(k.shape[0] for k in self.keys), tuple(k.shape[2] for k in self.keys), self.keys[0].dtype
        )


def stacked_layers(side: Sequence[Tensor] | Tensor) -> Tensor:
    """`[L, Hk, T, D]` of a chunk's keys or values."""
    return side if isinstance(side, Tensor) else torch.stack(list(side))


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

    def sample(self, count: int, tokens: int, shape: ChunkShape) -> list[Chunk]:
        """Chunks of made-up numbers, one after the other from position 0 on, to code before the first real one: what a codec
        compiles, loads and reserves at its first use. None where that is nothing."""

    def encode(self, chunks: Sequence[Chunk]) -> list[bytes]:
        """One packet a chunk. Chunks need not follow each other, and each packet decodes by itself."""

    def decode(self, packets: Sequence[bytes | memoryview], shape: ChunkShape) -> list[Chunk]:
        """The chunks again, in `shape.dtype`.

        Raises:
            PacketError: one of the packets is damaged or of another shape. (The store has verified a checksum before.)
        """
