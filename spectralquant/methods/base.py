"""The one interface of every compression method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.methods.eviction.history import HistoryView


class EncodedBlock(Protocol):
    """What a method keeps of a block. `nbytes` counts all of it: codes, headers, tables and padding."""

    @property
    def nbytes(self) -> int: ...


class Method(Protocol):
    """A codec for blocks of a KV cache.

    `options` are what a results row shows. `exact_bits` is how sinks and the recent window are counted and
    read: 16, or 8 as in packets with `exact="int8"` (a cache holds them in the model's dtype). `by_token`
    (False where it is not there): a block's code is as many codes as it has tokens, which can be let go one by one.
    """

    name: str
    options: dict[str, Any]
    exact_bits: int

    def encode(self, block: KVBlock) -> EncodedBlock:
        """Compress a block."""

    def decode(self, encoded: EncodedBlock) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values, float32 `[T, L, Hk, D]`."""


class EvictingMethod(Protocol):
    """A method that forgets tokens instead of (or before) coding them."""

    name: str
    options: dict[str, Any]
    exact_bits: int

    def evict(
        self, history: HistoryView, kept: Tensor, first_new: int, block: Callable[[], KVBlock]
    ) -> tuple[Tensor, Callable[[], tuple[KVBlock, EncodedBlock, Callable[[], tuple[Tensor, Tensor]]]] | None]:
        """Choose among the n tokens that have left the window, of which those from `first_new` on left just now.

        `kept: [L, Hk, n]` says which are still held; the answer may only clear entries. The second result codes what is
        kept of the new block (a composed method) and gives a function that decodes it, or is None.
        """

    def held_bytes(self, kept: Tensor, head_dim: int) -> int:
        """Bytes of keys and values in fp16 of the kept entries `[L, Hk, n]`, with what must be remembered about them."""


AnyMethod = Method | EvictingMethod


def is_evicting(method: AnyMethod) -> bool:
    """Whether a method forgets tokens."""
    return hasattr(method, "evict")
