"""The one interface of every compression method."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from spectralquant.codec.block import KVBlock


class EncodedBlock(Protocol):
    """What a method keeps of a block. `nbytes` counts all of it: codes, headers, tables and padding."""

    @property
    def nbytes(self) -> int: ...


class Method(Protocol):
    """A codec for blocks of a KV cache.

    `options` are what a results row shows. `exact_bits` is how sinks and the recent window are held: 16 or 8.
    """

    name: str
    options: dict[str, Any]
    exact_bits: int

    def encode(self, block: KVBlock) -> EncodedBlock:
        """Compress a block."""

    def decode(self, encoded: EncodedBlock) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values, float32 `[T, L, Hk, D]`."""
