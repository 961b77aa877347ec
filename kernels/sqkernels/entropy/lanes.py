"""Streams side by side on the CPU: one row a step, one column a lane, so that numpy works on all lanes at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sqkernels.entropy.contexts import Contexts
from sqkernels.entropy.layout import StreamTable

MAX_LANES = 8192
CHUNK_SYMBOLS = 1 << 18


@dataclass(frozen=True)
class Group:
    """Streams that code the same rows with the same number of columns a lane.

    streams: `[S']` numbers in the table. columns: int64 `[Q, L]`, the lanes' columns in turn, −1 past the last.
    """

    streams: np.ndarray
    first_row: int
    rows: int
    columns: np.ndarray

    @property
    def repeats(self) -> int:
        return self.columns.shape[0]

    @property
    def steps(self) -> int:
        return self.rows * self.repeats

    @property
    def lanes(self) -> int:
        return self.columns.shape[1]

    def rows_of(self, start: int, stop: int) -> tuple[slice, int]:
        """Rows of the matrix that some steps touch, and the steps of the first row that come before `start`."""
        first = start // self.repeats
        return slice(self.first_row + first, self.first_row + -(-stop // self.repeats)), start - first * self.repeats

    @cached_property
    def slices(self) -> list[tuple[int, int]]:
        """Runs of lanes with consecutive first columns."""
        cuts = (np.flatnonzero(np.diff(self.columns[0]) != 1) + 1).tolist()
        return list(zip([0, *cuts], [*cuts, self.lanes], strict=True))


@dataclass(frozen=True)
class Batch:
    """Some streams as lanes: groups by falling steps. stream: int64 `[L]`, each lane's stream as a place in `streams`,
    the numbers in the table; lane: int64 `[L]`, each lane's number among all lanes."""

    groups: tuple[Group, ...]
    streams: np.ndarray
    stream: np.ndarray
    lane: np.ndarray

    def active(self, step: int) -> int:
        """Lanes that have not ended before `step`; they come first."""
        return sum(g.lanes for g in self.groups if g.steps > step)

    @property
    def steps(self) -> int:
        return max((g.steps for g in self.groups), default=0)

    def chunks(self) -> Iterator[tuple[int, int, int]]:
        """(first step, one past the last, active lanes) of runs of steps in which no lane ends."""
        ends = sorted({g.steps for g in self.groups})
        start = 0
        for end in ends:
            lanes = self.active(start)
            size = max(16, CHUNK_SYMBOLS // max(1, lanes))
            while start < end:
                stop = min(end, start + size)
                yield start, stop, lanes
                start = stop


def batches(table: StreamTable) -> Iterator[Batch]:
    """All streams, a bounded number of lanes at a time."""
    fields, steps = table.fields.astype(np.int64), table.steps
    repeats = -(-fields[:, 3] // fields[:, 6])
    order = np.lexsort((np.arange(len(fields)), repeats, fields[:, 0], -steps))
    at = 0
    while at < len(order):
        lanes, stop = 0, at
        while stop < len(order) and (lanes == 0 or lanes + fields[order[stop], 5] <= MAX_LANES):
            lanes += int(fields[order[stop], 5])
            stop += 1
        yield _batch(fields, repeats, order[at:stop])
        at = stop


def _batch(fields: np.ndarray, repeats: np.ndarray, streams: np.ndarray) -> Batch:
    keys = np.stack([fields[streams, 0], fields[streams, 1], repeats[streams]], axis=1)
    cuts = np.flatnonzero(np.any(keys[1:] != keys[:-1], axis=1)) + 1
    groups = tuple(_group(fields, int(repeats[part[0]]), part) for part in np.split(streams, cuts))
    counts = fields[streams, 5]
    lane = np.concatenate([np.arange(f[7], f[7] + f[5]) for f in fields[streams]])
    return Batch(groups, streams, np.repeat(np.arange(len(streams)), counts), lane)


def _group(fields: np.ndarray, repeats: int, streams: np.ndarray) -> Group:
    parts = []
    for _, _, column, tokens, lane, lanes, stride, _, _ in fields[streams]:
        own = np.arange(repeats)[:, None] * stride + lane + np.arange(lanes)
        parts.append(np.where(own < tokens, column + own, -1))
    first = fields[streams[0]]
    return Group(streams, int(first[0]), int(first[1]), np.concatenate(parts, axis=1))


class TableOfLane:
    """Tables of lanes, step by step, times `factor`; lanes without a symbol get table K, which stands for no coding."""

    def __init__(self, table: StreamTable, contexts: Contexts, tables: int, factor: int) -> None:
        self.nothing, self.factor = tables, factor
        rows, classes = contexts.choice.shape
        self.choice = np.full((rows, classes + 1), tables, np.int32)
        self.choice[:, :-1] = contexts.choice.numpy()
        self.classes = np.full((2, table.columns + 1), classes, np.int64)  # column −1: no symbol
        self.classes[:, :-1] = contexts.classes.numpy()
        self.split = contexts.split
        self.shifts = None if contexts.shifts is None else contexts.shifts.numpy().astype(np.int32)
        self.group = None if contexts.group is None else contexts.group.numpy()
        self.fields = table.fields
        if self.shifts is None:
            self.choice *= factor

    def steps(self, batch: Batch, start: int, stop: int) -> np.ndarray:
        """Int32 `[stop − start, active lanes]`."""
        parts = [self._of(g, start, stop) for g in batch.groups if g.steps > start]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _of(self, group: Group, start: int, stop: int) -> np.ndarray:
        repeats, (rows, skip) = group.repeats, group.rows_of(start, stop)
        middle = min(max(self.split, rows.start), rows.stop)
        out = np.empty((rows.stop - rows.start, group.columns.size), np.int32)
        for kind, part in enumerate((slice(rows.start, middle), slice(middle, rows.stop))):
            if part.start < part.stop:
                classes = self.classes[kind, group.columns.reshape(-1)]
                into = out[part.start - rows.start : part.stop - rows.start]
                np.take(self.choice[part], classes, axis=1, out=into, mode="clip")
        if self.shifts is not None:
            blocks = np.repeat(self.fields[group.streams, 8], self.fields[group.streams, 5])
            moved = np.clip(out + np.tile(self.shifts[blocks][:, self.group[rows]].T, repeats), 0, self.nothing - 1)
            out = np.where(out == self.nothing, out, moved) * self.factor
        return out.reshape(-1, group.lanes)[skip : skip + stop - start]


def gather(matrix: np.ndarray, batch: Batch, start: int, stop: int) -> np.ndarray:
    """Symbols int32 `[stop − start, active lanes]` of a matrix `[R, N]`; lanes without one get any."""
    out = np.empty((stop - start, batch.active(start)), np.int32)
    at = 0
    for g in batch.groups:
        if g.steps <= start:
            continue
        rows, skip = g.rows_of(start, stop)
        into = out[:, at : at + g.lanes]
        at += g.lanes
        if g.repeats == 1:
            for first, last in g.slices:
                into[:, first:last] = matrix[rows, g.columns[0, first] : g.columns[0, first] + last - first]
            continue
        part = matrix[rows][:, g.columns.reshape(-1)].reshape(-1, g.lanes)
        into[:] = part[skip : skip + stop - start]
    return out


def scatter(matrix: np.ndarray, batch: Batch, start: int, stop: int, values: np.ndarray) -> None:
    """Inverse of `gather`: write the symbols of some steps into their places."""
    at = 0
    for g in batch.groups:
        if g.steps <= start:
            continue
        part = values[:, at : at + g.lanes]
        at += g.lanes
        if g.repeats == 1:
            own = slice(g.first_row + start, g.first_row + stop)
            for first, last in g.slices:
                matrix[own, g.columns[0, first] : g.columns[0, first] + last - first] = part[:, first:last]
            continue
        step = np.arange(start, stop)
        columns = g.columns[step % g.repeats]
        there = columns >= 0
        rows = np.broadcast_to(g.first_row + step[:, None] // g.repeats, columns.shape)
        matrix[rows[there], columns[there]] = part[there]


def places(batch: Batch, start: int, step: np.ndarray, lane: np.ndarray, columns: int) -> np.ndarray:
    """Flat places in a matrix of `columns` columns of (step after start, lane) pairs."""
    out = np.empty(len(step), np.int64)
    at = 0
    for g in batch.groups:
        if g.steps <= start:
            continue
        mine = (lane >= at) & (lane < at + g.lanes)
        s = start + step[mine]
        out[mine] = (g.first_row + s // g.repeats) * columns + g.columns[s % g.repeats, lane[mine] - at]
        at += g.lanes
    return out
