"""Where tokens lie in a cache, and how their keys are turned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenSlots:
    """Where the numbers of N tokens lie in a tensor: head h of token n begins offsets[n] + h · head_stride elements after
    its first one, coordinates next to each other. offsets: int64 `[N]`.
    """

    offsets: Tensor
    head_stride: int

    @classmethod
    def dense(cls, cache: Tensor, rows: Tensor, tokens: Tensor) -> TokenSlots:
        """Of a cache `[B, Hk, T, D]`: sequences and places int64 `[N]`."""
        if cache.dim() != 4 or cache.stride(3) != 1:
            raise ValueError(f"a cache must be [B, Hk, T, D] with adjacent coordinates, not {list(cache.shape)}")
        return cls(rows * cache.stride(0) + tokens * cache.stride(2), cache.stride(1))

    @classmethod
    def paged(cls, pages: Tensor, slots: Tensor) -> TokenSlots:
        """Of pages `[pages, page size, Hk, D]`: int64 `[N]` numbers page · page size + place, as a serving engine maps them."""
        if pages.dim() != 4 or pages.stride(3) != 1:
            raise ValueError(f"pages must be [pages, size, Hk, D] with adjacent coordinates, not {list(pages.shape)}")
        page, place = slots // pages.shape[1], slots % pages.shape[1]
        return cls(page * pages.stride(0) + place * pages.stride(1), pages.stride(2))

    def part(self, first: int, last: int) -> TokenSlots:
        """Of some tokens."""
        return TokenSlots(self.offsets[first:last], self.head_stride)


@dataclass(frozen=True)
class LayerTensors:
    """Keys (or values) of some layers, a tensor each, alike in shape, dtype and strides."""

    tensors: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        first = self.tensors[0]
        for t in self.tensors:
            if (t.shape, t.dtype, t.device, t.stride()) != (first.shape, first.dtype, first.device, first.stride()):
                raise ValueError("the tensors of all layers must be alike")

    @cached_property
    def offsets(self) -> Tensor:
        """Int64 `[L]`: elements from the first layer's first one to each layer's."""
        size = self.tensors[0].itemsize
        starts = torch.tensor([t.data_ptr() for t in self.tensors])
        if bool(((starts - starts[0]) % size != 0).any()):
            raise ValueError("the tensors of all layers must be aligned to their elements")
        return ((starts - starts[0]) // size).to(self.tensors[0].device)


@dataclass(frozen=True)
class Turns:
    """Rotary embedding of N tokens: cos and sin float32 `[N, F]` of F pairs. neighbours: pairs are (2i, 2i + 1), else (i, i + F)."""

    cos: Tensor
    sin: Tensor
    neighbours: bool = False

    def part(self, first: int, last: int) -> Turns:
        """Of some tokens."""
        return Turns(self.cos[first:last], self.sin[first:last], self.neighbours)

    @property
    def pairs(self) -> int:
        """F."""
        return self.cos.shape[1]

    def columns(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """First and second coordinate of each pair, int64 `[F]`."""
        pair = torch.arange(self.pairs, device=device)
        return (2 * pair, 2 * pair + 1) if self.neighbours else (pair, pair + self.pairs)
