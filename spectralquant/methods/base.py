"""The one interface of every compression method."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.geometry import CacheGeometry
from spectralquant.methods.eviction.history import HistoryView


class EncodedBlock(Protocol):
    """What a method keeps of a block. `nbytes` counts all of it: codes, headers, tables and padding."""

    @property
    def nbytes(self) -> int: ...


class Method(Protocol):
    """A codec for blocks of a KV cache.

    `options` are what a results row shows. `exact_bits` is how sinks and the recent window are counted and
    read: 16, or 8 as in packets with `exact="int8"` and caches with `exact_bits=8`. `by_token`
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
    """A method that forgets tokens instead of coding them.

    `mode` is when it chooses: `prompt` (once, when a prompt has been read) or `streaming` (after every block of text).
    """

    name: str
    options: dict[str, Any]
    exact_bits: int
    mode: str

    def choose(self, history: HistoryView, held: Tensor, length: int) -> Tensor:
        """Which of n tokens, the newest last, are held from now on: bool `[L, Hk, n]`.

        `held` says which are held now; the answer may only clear entries. `length`: tokens of the whole text (or prompt)
        that these layers can read, from which a budget follows.
        """

    def held_bytes(self, kept: Tensor, geometry: CacheGeometry) -> int:
        """Bytes of keys and values in fp16 of the kept entries `[L, Hk, n]`, with what must be remembered about them."""


class ComposedMethod(Protocol):
    """A method that forgets some tokens of a block and codes the others."""

    name: str
    options: dict[str, Any]
    exact_bits: int
    mode: str

    def select(self, history: HistoryView, part: slice, block: KVBlock) -> tuple[Tensor, KVBlock, EncodedBlock]:
        """The tokens of a block (`part` of those that `history` tells of) that are kept, bool `[T]`; alone; and coded."""

    def decode(self, encoded: EncodedBlock) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values of the kept tokens, float32 `[T', L, Hk, D]`."""


AnyMethod = Method | EvictingMethod | ComposedMethod


def is_evicting(method: AnyMethod) -> bool:
    """Whether a method forgets tokens and codes none."""
    return hasattr(method, "choose")


def is_composed(method: AnyMethod) -> bool:
    """Whether a method forgets tokens and codes the others."""
    return hasattr(method, "select")


def reads_content(method: AnyMethod) -> bool:
    """Whether a method chooses tokens by their keys, values and queries, not by attention alone."""
    return bool(getattr(method, "reads_content", False))


def mode_of(method: AnyMethod) -> str | None:
    """The one mode that a method works in; None where it does not choose tokens and works in both."""
    return getattr(method, "mode", None)
