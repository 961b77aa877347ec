"""`RowLayout`: where the bits of a layer's codes lie.

A code of b bits is a sum of planes of 4, 2 and 1 bits (8 = 4 + 4, 6 = 4 + 2, 3 = 2 + 1), and attention is linear in
codes, so kernels only ever unpack three widths and never put a code together again. A token's row holds, head by head,
its key planes and then its value planes; in a band of w-bit planes over n units, plane p takes bits w·(p // n) … of
unit p mod n, so that one mask unpacks n planes at a time without a shuffle. A unit is a byte, and 16 bits for 4-bit
planes: two of them in a register become two halves with one instruction (see `unpack.unpack4`).

A page holds 128 tokens: the rows of head 0, those of head 1, …, then, where there is an index, for every head
`[128, rank / 2]` bytes of the index codes (4 bits; component i low and i + rank / 2 high in byte i), so that a scan
reads nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PAGE = 128
WIDTHS = (4, 2, 1)
UNIT_BYTES = (2, 1, 1)
PER_UNIT = tuple(8 * unit // width for unit, width in zip(UNIT_BYTES, WIDTHS, strict=True))
MIN_BAND = 16
INDEX_RANKS = 16


@dataclass(frozen=True)
class HeadBands:
    """One head's keys or values: per width the bytes of the band, and the (component, shift) of every plane."""

    nbytes: tuple[int, ...]
    planes: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, bits: Tensor, align: int) -> HeadBands:
        """Split components of `bits: [R]` bits into planes; band sizes are rounded up to `align` bytes."""
        planes: dict[int, list[tuple[int, int]]] = {width: [] for width in WIDTHS}
        for component, left in enumerate(bits.tolist()):
            for width in WIDTHS:
                while left >= width:
                    left -= width
                    planes[width].append((component, left))
        sizes = tuple(-(-len(planes[w]) * w // (8 * align)) * align for w in WIDTHS)
        return cls(sizes, tuple(tuple(planes[w]) for w in WIDTHS))

    @property
    def row_bytes(self) -> int:
        return sum(self.nbytes)


class RowLayout:
    """Layout of one layer.

    Args:
        key_bits, value_bits: per head uint8 `[R]`, bits of each component, at most 8 (0: dropped).
        index_rank: components of the index, a multiple of 16; 0 for none.
        align: bands start on multiples of this many bytes; wider loads are worth a few padding bytes.

    padded: units, per kind and width, of the widest head's band, rounded up to a power of two that a matrix unit takes;
    kernels work on `[…, planes]` with `planes = Σ padded · planes a unit` columns, in the order of `plane_table`.
    """

    def __init__(
        self, key_bits: Sequence[Tensor], value_bits: Sequence[Tensor], *, index_rank: int = 0, align: int = 4
    ) -> None:
        if len(key_bits) != len(value_bits) or not key_bits:
            raise ValueError(f"{len(key_bits)} heads of keys and {len(value_bits)} of values")
        if index_rank % INDEX_RANKS or index_rank < 0:
            raise ValueError(f"index_rank={index_rank} must be a multiple of {INDEX_RANKS}")
        if align % 2 or align < 2:
            raise ValueError(f"align={align} must be even: 4-bit planes lie in 16-bit units")
        for bits in (*key_bits, *value_bits):
            if len(bits) and int(bits.max()) > 8:
                raise ValueError("at most 8 bits per component")
        self.heads = [tuple(HeadBands.of(b, align) for b in pair) for pair in zip(key_bits, value_bits, strict=True)]
        self.index_rank, self.align = index_rank, align
        self.ranks = [[len(b) for b in bits] for bits in (key_bits, value_bits)]
        self._pad()
        self.row_bytes = [key.row_bytes + value.row_bytes for key, value in self.heads]
        self.index_bytes = index_rank // 2
        rows = sum(self.row_bytes)
        self.row_offsets = [PAGE * sum(self.row_bytes[:h]) for h in range(len(self.heads))]
        self.index_offsets = [PAGE * (rows + h * self.index_bytes) for h in range(len(self.heads))]
        self.page_bytes = PAGE * (rows + len(self.heads) * self.index_bytes)
        self.uniform = all(h == self.heads[0] for h in self.heads)

    def _pad(self, instead: Sequence[tuple[int, ...]] = ((MIN_BAND, 0, 0),) * 2) -> None:
        """Set `padded`, and what follows from it. instead: of keys and values without any bits (a kernel needs a column)."""
        widest = [[max(h[kind].nbytes[i] for h in self.heads) // UNIT_BYTES[i] for i in range(3)] for kind in (0, 1)]
        self.padded = tuple(
            tuple(map(_padded, units)) if any(units) else empty for units, empty in zip(widest, instead, strict=True)
        )
        self.planes = tuple(plane_count(sizes) for sizes in self.padded)

    def part(self, first: int, count: int, *, narrow: bool = True) -> RowLayout:
        """The same pages as `count` heads see them, from head `first` on (one layer of pages that hold several).

        narrow: pad bands to the widest of these heads alone, so that kernels do not work on what only other layers need.
        """
        out = copy.copy(self)
        heads = slice(first, first + count)
        for name in ("heads", "row_bytes", "row_offsets", "index_offsets"):
            setattr(out, name, getattr(self, name)[heads])
        out.ranks = [ranks[heads] for ranks in self.ranks]
        out.uniform = all(h == out.heads[0] for h in out.heads)
        if narrow:
            out._pad(self.padded)
        return out

    def columns_in(self, whole: RowLayout, kind: int) -> Tensor | None:
        """Where the columns of this part of `whole` lie among its columns, int64 `[planes]`; None where they are the same."""
        if self.padded[kind] == whole.padded[kind]:
            return None
        columns, start = [], 0
        for own, padded, per in zip(self.padded[kind], whole.padded[kind], PER_UNIT, strict=True):
            columns += [torch.arange(own) + start + plane * padded for plane in range(per)]
            start += per * padded
        return torch.cat(columns)

    def head_table(self) -> Tensor:
        """Int32 `[Hk, 9]`: offset of the rows in a page, bytes of a row, three key bands, three value bands, index."""
        table = [
            [self.row_offsets[h], self.row_bytes[h], *key.nbytes, *value.nbytes, self.index_offsets[h]]
            for h, (key, value) in enumerate(self.heads)
        ]
        return torch.tensor(table, dtype=torch.int32)

    def plane_table(self, kind: int) -> tuple[Tensor, Tensor, Tensor]:
        """Component (−1: none), shift and width of every padded column of keys (0) or values (1): int64 `[Hk, planes]`."""
        shape = (len(self.heads), self.planes[kind])
        component, shift, widths = (
            torch.full(shape, -1),
            torch.zeros(shape, dtype=torch.int64),
            torch.zeros(shape, dtype=torch.float32),
        )
        for h, pair in enumerate(self.heads):
            start = 0
            for i, (width, padded, planes) in enumerate(zip(WIDTHS, self.padded[kind], pair[kind].planes, strict=True)):
                units = pair[kind].nbytes[i] // UNIT_BYTES[i]
                for p, (which, by) in enumerate(planes):
                    column = start + (p // units) * padded + p % units
                    component[h, column], shift[h, column] = which, by
                stop = start + padded * PER_UNIT[i]
                widths[h, start:stop] = width
                start = stop
        return component, shift, widths.long()


def plane_count(padded: Sequence[int]) -> int:
    """Plane columns of bands of `padded` units."""
    return sum(n * per for n, per in zip(padded, PER_UNIT, strict=True))


def _padded(units: int) -> int:
    return 0 if not units else max(MIN_BAND, 1 << (units - 1).bit_length())
