"""The pieces a compressed cache offers to attention, in token order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spectralquant.codec.hot.codec import HotMatrices
from sqkernels.common import RowPages


@dataclass(frozen=True)
class DenseSegment:
    """Keys (after RoPE) and values `[B, Hk, S, D]`."""

    keys: Tensor
    values: Tensor

    @property
    def tokens(self) -> int:
        return self.keys.shape[2]


@dataclass(frozen=True)
class CodeSegment:
    """Hot codes: bytes uint8 `[B, n, row_bytes, 128]` of keys and of values, and their layer's matrices.

    unused: slots at the start of the first page that hold no token.
    """

    key_pages: Tensor
    value_pages: Tensor
    key: HotMatrices
    value: HotMatrices
    unused: int

    @property
    def tokens(self) -> int:
        return self.key_pages.shape[1] * self.key_pages.shape[3] - self.unused


@dataclass(frozen=True)
class RowSegment:
    """Hot codes as rows, which only kernels read in place. tokens: of every sequence."""

    pages: RowPages
    tokens: int


Segment = DenseSegment | CodeSegment | RowSegment
