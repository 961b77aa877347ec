"""The running sum of XᵀX, of which only lower tiles are computed."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_TILE = 1024


class SymmetricSum:
    """The running sum of XᵀX for X `[T, p]`: a symmetric p × p matrix of which only lower tiles are computed."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width, self.device = width, torch.device(device)
        count = -(-width // MAX_TILE)
        size = -(-width // count)
        self.edges = [min(i * size, width) for i in range(count + 1)]
        self.tiles = {
            (i, j): torch.zeros(self._length(i), self._length(j), device=device)
            for i in range(count)
            for j in range(i + 1)
        }

    def _length(self, i: int) -> int:
        return self.edges[i + 1] - self.edges[i]

    def add(self, x: Tensor) -> None:
        """Add the Gram matrix of `x: [T, p]`, which comes here from wherever it is."""
        x = x.to(self.device)
        parts = [x[:, a:b] for a, b in zip(self.edges, self.edges[1:], strict=False)]
        for (i, j), tile in self.tiles.items():
            tile.addmm_(parts[i].T, parts[j])

    def diagonal(self) -> Tensor:
        """The diagonal `[p]`."""
        return torch.cat([self.tiles[i, i].diagonal() for i in range(len(self.edges) - 1)])

    def block(self, rows: slice, columns: slice | None = None) -> Tensor:
        """Some rows of the symmetric matrix in some columns (by default the same ones), float32."""
        columns = rows if columns is None else columns
        first = self.tiles[0, 0]
        out = first.new_empty(rows.stop - rows.start, columns.stop - columns.start)
        spans = list(zip(self.edges, self.edges[1:], strict=False))
        for i, (top, bottom) in enumerate(spans):
            a, b = max(rows.start, top), min(rows.stop, bottom)
            for j, (left, right) in enumerate(spans):
                c, d = max(columns.start, left), min(columns.stop, right)
                if a < b and c < d:
                    tile = self.tiles[i, j] if i >= j else self.tiles[j, i].T
                    out[a - rows.start : b - rows.start, c - columns.start : d - columns.start] = tile[
                        a - top : b - top, c - left : d - left
                    ]
        return out

    def merge(self, other: SymmetricSum) -> None:
        """Add another sum of the same width."""
        for key, tile in self.tiles.items():
            tile += other.tiles[key].to(tile.device)

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The full symmetric matrix `[p, p]`."""
        out = torch.zeros(self.width, self.width, dtype=dtype, device=self.device)
        for (i, j), tile in self.tiles.items():
            rows, columns = slice(*self.edges[i : i + 2]), slice(*self.edges[j : j + 2])
            out[rows, columns] = tile.to(dtype)
            out[columns, rows] = tile.T.to(dtype)
        return out
