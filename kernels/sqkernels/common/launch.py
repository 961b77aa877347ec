"""`LayoutArguments`: what every kernel over rows is compiled for, from a layout to plain numbers and back."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqkernels.common.layout import UNIT_BYTES, RowLayout, plane_count
from sqkernels.common.matrices import RowMatrices


@dataclass(frozen=True)
class LayoutArguments:
    """What a kernel is compiled for. numbers: the same as integers, which a `torch.library` operator can take.

    Objects are kept, and what follows from them is worked out once: a decode step makes many calls of one layout.
    """

    heads: int
    token_bytes: int
    align: int
    uniform: bool
    row: int
    bands: tuple[int, ...]
    padded: tuple[int, ...]
    page_bytes: int
    index_rank: int

    @classmethod
    def of(cls, matrices: RowMatrices) -> LayoutArguments:
        """Of a layer's layout."""
        layout = matrices.layout
        if layout not in _KNOWN:
            _KNOWN[layout] = cls._of(layout)
        return _KNOWN[layout]

    @classmethod
    def _of(cls, layout: RowLayout) -> LayoutArguments:
        bands = tuple(n for kind in layout.heads[0] for n in kind.nbytes)
        return cls(
            len(layout.heads),
            sum(layout.row_bytes),
            layout.align,
            layout.uniform,
            layout.row_bytes[0],
            bands if layout.uniform else (0,) * 6,
            (*layout.padded[0], *layout.padded[1]),
            layout.page_bytes,
            layout.index_rank,
        )

    @functools.cached_property
    def numbers(self) -> list[int]:
        head = [self.heads, self.token_bytes, self.align, int(self.uniform), self.row, self.page_bytes, self.index_rank]
        return [*head, *self.bands, *self.padded]

    @classmethod
    def from_numbers(cls, n: Sequence[int]) -> LayoutArguments:
        """Back from `numbers`."""
        return _from_numbers(tuple(n))

    @classmethod
    def _from(cls, n: Sequence[int]) -> LayoutArguments:
        return cls(n[0], n[1], n[2], bool(n[3]), n[4], tuple(n[7:13]), tuple(n[13:19]), n[5], n[6])

    @functools.cached_property
    def key_planes(self) -> int:
        return plane_count(self.padded[:3])

    @functools.cached_property
    def value_planes(self) -> int:
        return plane_count(self.padded[3:])

    @functools.cached_property
    def constants(self) -> dict[str, Any]:
        """Compile-time arguments of the attention kernels."""
        filled = tuple(units * size for units, size in zip(self.padded, UNIT_BYTES * 2, strict=True))
        return {
            "UNIFORM": self.uniform,
            "FULL": self.uniform and self.bands == filled,
            "ALIGN": self.align,
            "ROW": self.row if self.uniform else 0,
            "BANDS": self.bands,
            **self.padded_bands,
        }

    @property
    def padded_bands(self) -> dict[str, int]:
        """Units of the padded bands by the kernels' names."""
        return dict(zip(("K4", "K2", "K1", "V4", "V2", "V1"), self.padded, strict=True))


_KNOWN: weakref.WeakKeyDictionary[RowLayout, LayoutArguments] = weakref.WeakKeyDictionary()
_from_numbers = functools.lru_cache(maxsize=256)(LayoutArguments._from)


def bucket(n: int) -> int:
    """32, 128, 512, …: a size of loops' tiles that holds n, coarse so that growing caches compile few kernels."""
    size = 32
    while size < n:
        size *= 4
    return size


def next_power(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
