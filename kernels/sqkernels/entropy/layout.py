"""How a block's symbols are dealt to lanes, and lanes to streams.

A block is a matrix of symbols `[R, T]`: R rows (components), T columns (tokens). It is cut into C runs of rows of equal
length (to one row), and each run is read by n lanes: lane i codes the columns i, i + n, i + 2n, … of every row, row after row. Lanes
128g … 128g + 127 of a run form a stream: they step together and share one sequence of 16-bit words, in which each takes
the next word when it needs one (interleaved coding, Giesen 2014, arXiv 1402.3392). Streams are independent of each other.
Lanes are numbered run after run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

STREAM_LANES = 128
FIELDS = ("row", "rows", "column", "tokens", "lane", "lanes", "stride", "state", "block")


@dataclass(frozen=True)
class BlockShape:
    """tokens: T. lanes: n, lanes of a run, at most T. runs: C, at most R."""

    tokens: int
    lanes: int
    runs: int

    @property
    def total_lanes(self) -> int:
        return self.lanes * self.runs

    @property
    def streams(self) -> int:
        return self.runs * -(-self.lanes // STREAM_LANES)

    def check(self, rows: int) -> None:
        """Raise ValueError unless lanes and runs are possible for blocks of `rows` rows."""
        if not 1 <= self.lanes <= max(1, self.tokens) or not 1 <= self.runs <= max(1, rows):
            raise ValueError(
                f"{self.lanes} lanes and {self.runs} runs do not fit {self.tokens} columns and {rows} rows"
            )


@lru_cache(maxsize=256)
def _fields(shape: BlockShape, rows: int) -> np.ndarray:
    """`StreamTable.fields` of one block alone."""
    shape.check(rows)
    out = []
    for run in range(shape.runs):
        first = rows * run // shape.runs
        count = rows * (run + 1) // shape.runs - first
        for lane in range(0, shape.lanes, STREAM_LANES):
            lanes = min(STREAM_LANES, shape.lanes - lane)
            out.append((first, count, 0, shape.tokens, lane, lanes, shape.lanes, run * shape.lanes + lane, 0))
    return np.array(out, dtype=np.int32).reshape(-1, len(FIELDS))


@dataclass(frozen=True)
class StreamTable:
    """Streams of some blocks that lie side by side in a matrix `[R, N]`.

    fields: int32 `[S, 9]`: first row and rows; first column and columns of the block; first lane within its run and
    lanes; lanes of the run (the stride between a lane's columns); first lane among all lanes; number of the block.
    """

    fields: np.ndarray
    rows: int
    columns: int
    shapes: tuple[BlockShape, ...]

    @classmethod
    def of(cls, shapes: Sequence[BlockShape], rows: int) -> StreamTable:
        """Of consecutive blocks of `rows` rows."""
        own = [_fields(shape, rows) for shape in shapes]
        tokens = np.array([shape.tokens for shape in shapes], dtype=np.int32)
        lanes = np.array([shape.total_lanes for shape in shapes], dtype=np.int32)
        first = np.stack([tokens.cumsum() - tokens, lanes.cumsum() - lanes, np.arange(len(shapes))])
        fields = np.concatenate([np.zeros((0, len(FIELDS)), np.int32), *own])
        fields[:, [FIELDS.index(name) for name in ("column", "state", "block")]] += np.repeat(
            first.T.astype(np.int32), [len(part) for part in own], axis=0
        )
        return cls(fields, rows, int(tokens.sum()), tuple(shapes))

    def __len__(self) -> int:
        return len(self.fields)

    @cached_property
    def lanes(self) -> int:
        """Lanes of all streams."""
        return int(self.fields[:, FIELDS.index("lanes")].sum())

    @cached_property
    def steps(self) -> np.ndarray:
        """Int64 `[S]`: symbols that a lane codes (a lane past the last column skips its step)."""
        f = self.fields.astype(np.int64)
        return f[:, 1] * -(-f[:, 3] // f[:, 6])

    def per_block(self, counts: np.ndarray) -> np.ndarray:
        """Sums over each block's streams of `counts: [S, …]`."""
        out = np.zeros((len(self.shapes), *counts.shape[1:]), counts.dtype)
        np.add.at(out, self.fields[:, -1], counts)
        return out
