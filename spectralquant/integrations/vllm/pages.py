"""Pages of an engine's KV cache to keys and values and back.

Shapes: n pages of N tokens, R tensor-parallel ranks, L layers, h heads a rank (Hk = R·h), D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spectralquant.errors import InputError
from spectralquant.integrations.chunk import stacked_layers
from spectralquant.integrations.chunks import Chunk

# A layout's page as [h, N, 2, D] for reading and writing: `HND` is [h, N, 2·D], `NHD` is [N, h, 2·D].
PageView = Callable[[Tensor, int, int, int], tuple[Tensor, Tensor]]


def head_major(pages: Tensor, heads: int, block: int, dim: int) -> tuple[Tensor, Tensor]:
    """Views of K and V, each `[…, h, N, D]`, of pages `[…, h·N·2·D]` in vLLM's layout HND."""
    both = pages.unflatten(-1, (heads, block, 2, dim))
    return both[..., 0, :], both[..., 1, :]


def token_major(pages: Tensor, heads: int, block: int, dim: int) -> tuple[Tensor, Tensor]:
    """Views of K and V, each `[…, h, N, D]`, of pages `[…, N·h·2·D]` in vLLM's layout NHD."""
    both = pages.unflatten(-1, (block, heads, 2, dim)).transpose(-4, -3)
    return both[..., 0, :], both[..., 1, :]


LAYOUTS: dict[str, PageView] = {"HND": head_major, "LBHNC": head_major, "NHD": token_major, "LBNHC": token_major}


def layout_named(name: str) -> PageView:
    """How pages of a layout of vLLM's are read.

    Raises:
        InputError: a layout that mixes layers in a page.
    """
    if name not in LAYOUTS:
        raise InputError(f"KV cache layout {name} cannot be stored; set VLLM_KV_CACHE_LAYOUT to one of HND and NHD.")
    return LAYOUTS[name]


class RowLayout:
    """A chunk as vLLM's tier in CPU memory holds it: one row of bytes, `[R, L, n, page]`, then padding."""

    def __init__(
        self,
        view: PageView,
        order: Sequence[int],
        ranks: int,
        kv_heads: int,
        head_dim: int,
        block: int,
        pages: int,
        dtype: torch.dtype,
    ) -> None:
        """order[i]: which row of L is the model's layer i. pages: n, how many a chunk has."""
        self._view, self._order = view, torch.tensor(list(order))
        self._ranks, self._heads, self._dim, self._block, self._pages = ranks, kv_heads // ranks, head_dim, block, pages
        ordered = list(order) == sorted(order)
        self._back = None if ordered else torch.argsort(self._order)
        self._dtype = dtype
        self.bytes = ranks * len(order) * pages * self._page * dtype.itemsize

    @property
    def _page(self) -> int:
        return self._heads * self._block * 2 * self._dim

    def read(self, rows: Tensor, starts: Sequence[int]) -> list[Chunk]:
        """Chunks of rows `[m, row bytes]` (int8), in the rows' own device's memory."""
        layers = len(self._order)
        pages = rows[:, : self.bytes].view(self._dtype).view(len(rows), self._ranks, layers, self._pages, self._page)
        sides = []
        for side in self._view(pages, self._heads, self._block, self._dim):  # [m, R, L, n, h, N, D]
            heads_first = side.permute(0, 2, 1, 4, 3, 5, 6).flatten(2, 3).flatten(3, 4)  # [m, L, Hk, n·N, D]
            sides.append(heads_first if self._back is None else heads_first[:, self._order.to(heads_first.device)])
        keys, values = sides
        return [Chunk(start, keys[i], values[i]) for i, start in enumerate(starts)]

    def write(self, chunks: Sequence[Chunk], device: torch.device | str = "cpu") -> Tensor:
        """Rows `[m, bytes]` (int8) of chunks, made on `device`."""
        layers, m = len(self._order), len(chunks)
        pages = torch.empty(m, self._ranks, layers, self._pages, self._page, dtype=self._dtype, device=device)
        for view, side in zip(self._view(pages, self._heads, self._block, self._dim), ("keys", "values"), strict=True):
            for row, chunk in zip(view, chunks, strict=True):  # [R, L, n, h, N, D]
                numbers = stacked_layers(getattr(chunk, side))  # [L, Hk, T, D]
                if self._back is not None:
                    numbers = numbers[self._back.to(numbers.device)]
                split = numbers.unflatten(1, (self._ranks, self._heads)).unflatten(3, (self._pages, self._block))
                row.copy_(split.permute(1, 0, 3, 2, 4, 5))
        return pages.view(m, -1).view(torch.int8)
