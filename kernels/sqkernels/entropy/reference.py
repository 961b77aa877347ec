"""Decoding and encoding on the CPU: numpy over all lanes at once, step after step.

A lane's state is a 32-bit number of at least 2^16. Decoding a symbol takes the state's low 10 bits as a slot of the
table, finds symbol and frequency there, and goes on with frequency · (state >> 10) + (slot − first slot); a state under
2^16 then takes 16 bits more from the stream. Encoding does the same backwards (Duda 2013, arXiv 1311.2540).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from sqkernels.entropy.contexts import Contexts
from sqkernels.entropy.host import ESCAPED, HostTables
from sqkernels.entropy.lanes import Batch, TableOfLane, batches, gather, places, scatter
from sqkernels.entropy.layout import StreamTable
from sqkernels.entropy.tables import PRECISION, TOTAL, VALUES, RansTables

FLOOR = 1 << 16
WORDS_SHORT, WORDS_LEFT, STATE_WRONG, ESCAPES_WRONG = 1, 2, 4, 8


def decode(
    words: np.ndarray,
    counts: np.ndarray,
    states: np.ndarray,
    escapes: np.ndarray,
    table: StreamTable,
    contexts: Contexts,
    tables: RansTables,
    out: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fill `out: [R, N]` (escapes as 0); returns escape positions int64 `[E]`, final words uint16 `[lanes]`, status `[S]`.

    words: uint16, stream after stream. counts, escapes: int64 `[S]`. states: uint32 `[lanes]`. A stream that asks for
    more words than it has is given any; its status says so.
    """
    host = HostTables.of(tables)
    padded = np.concatenate([words, np.zeros(1, np.uint16)]).astype(np.uint32)
    begins = np.cumsum(counts) - counts
    escape_begins = np.cumsum(escapes) - escapes
    positions = np.full(int(escapes.sum()), -1, np.int64)
    finals = np.zeros(len(states), np.uint16)
    status = np.zeros(len(table), np.int32)
    lane_tables = TableOfLane(table, contexts, tables.count, TOTAL)
    for batch in batches(table):
        reader = _Words(padded, begins[batch.streams], counts[batch.streams])
        found = np.zeros(len(batch.streams), np.int64)
        x = states[batch.lane].copy()
        for start, stop, lanes in batch.chunks():
            index = lane_tables.steps(batch, start, stop)
            _decode_steps(x[:lanes], index, host.slots, batch.stream[:lanes], reader)
            values = torch.index_select(host.value_of_slot, 0, torch.from_numpy(index).reshape(-1)).numpy()
            marked = np.flatnonzero(values == ESCAPED)
            if len(marked):
                values[marked] = 0
                step, lane = np.divmod(marked, lanes)
                order = np.argsort(batch.stream[lane], kind="stable")
                stream = batch.stream[lane[order]]
                new = np.bincount(stream, minlength=len(found))
                rank = found[stream] + np.arange(len(order)) - (np.cumsum(new) - new)[stream]
                fits = rank < escapes[batch.streams[stream]]
                at = places(batch, start, step[order], lane[order], table.columns)
                positions[(escape_begins[batch.streams[stream]] + rank)[fits]] = at[fits]
                found += new
            scatter(out, batch, start, stop, values.reshape(index.shape))
        finals[batch.lane] = x.astype(np.uint16)
        wrong = np.bincount(batch.stream[(x >> np.uint32(16)) != 1], minlength=len(found)) > 0
        status[batch.streams] = (
            WORDS_SHORT * (reader.next_word > reader.ends)
            + WORDS_LEFT * (reader.next_word < reader.ends)
            + STATE_WRONG * wrong
            + ESCAPES_WRONG * (found != escapes[batch.streams])
        )
    return positions, finals, status


def _decode_steps(x: np.ndarray, index: np.ndarray, slots: torch.Tensor, stream: np.ndarray, reader: _Words) -> None:
    """Decode a symbol a row; `index` int32 `[steps, L]` holds each symbol's table times 1,024 and gets its slot added."""
    lanes = len(x)
    full = lambda value: np.full(lanes, value, np.uint32)  # noqa: E731 (array operands cost less than scalars)
    low_slot, precision, half, low_half, floor = full(TOTAL - 1), full(PRECISION), full(16), full(0xFFFF), full(FLOOR)
    rows = torch.from_numpy(index).unbind(0)
    unsigned = index.view(np.uint32)
    entry = torch.empty(lanes, dtype=torch.int32)
    e = entry.numpy().view(np.uint32)
    slot, frequency, short = np.empty(lanes, np.uint32), np.empty(lanes, np.uint32), np.empty(lanes, bool)
    for i, row in enumerate(rows):
        np.bitwise_and(x, low_slot, slot)
        np.add(slot, unsigned[i], unsigned[i])
        torch.index_select(slots, 0, row, out=entry)
        np.right_shift(x, precision, x)
        np.right_shift(e, half, frequency)
        np.multiply(x, frequency, x)
        np.bitwise_and(e, low_half, e)
        np.add(x, e, x)
        np.less(x, floor, short)
        lane = short.nonzero()[0]
        if len(lane):
            x[lane] = (x[lane] << half[: len(lane)]) | reader.take(stream[lane])


class _Words:
    """The words of some streams, read in order. Who reads past a stream's end gets any words."""

    def __init__(self, words: np.ndarray, begins: np.ndarray, counts: np.ndarray) -> None:
        self.words, self.next_word, self.counts = words, begins.copy(), counts
        self.ends = begins + counts
        self.places = np.arange(1 << 14)

    def take(self, stream: np.ndarray) -> np.ndarray:
        """One word for each of `stream`, which rises."""
        if len(self.counts) == 1:
            at = int(self.next_word[0])
            self.next_word += len(stream)
            part = self.words[at : at + len(stream)]
            return part if len(part) == len(stream) else np.zeros(len(stream), np.uint32)
        new = np.bincount(stream, minlength=len(self.counts))
        self.next_word += new
        offset = self.next_word - np.add.accumulate(new)
        at = offset[stream]
        at += self.places[: len(stream)]
        return self.words.take(at, mode="clip")


def encode(
    symbols: np.ndarray,
    initial: np.ndarray,
    table: StreamTable,
    contexts: Contexts,
    tables: RansTables,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words uint16 stream after stream, counts int64 `[S]`, states uint32 `[lanes]` of symbols `[R, N]`.

    initial: uint16 `[lanes]`, what the lanes' states hold when decoding ends. Values that escape are coded as such.
    """
    host = HostTables.of(tables)
    states = np.empty(len(initial), np.uint32)
    lane_tables = TableOfLane(table, contexts, tables.count, VALUES)
    values: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    for batch in batches(table):
        x = initial[batch.lane].astype(np.float64) + FLOOR
        for start, stop, lanes in reversed(list(batch.chunks())):
            index = _value_index(symbols, batch, start, stop, lane_tables)
            for v, lane in _encode_steps(x[:lanes], index, host):
                values.append(v)
                owners.append(batch.streams[batch.stream[lane]])
        states[batch.lane] = x.astype(np.uint32)
    if not values:
        return np.zeros(0, np.uint16), np.zeros(len(table), np.int64), states
    # words were made last step first; lanes of a step are in order already
    owner = np.concatenate(owners[::-1])
    counts = np.bincount(owner, minlength=len(table)).astype(np.int64)
    order = np.argsort(owner.astype(np.uint16) if len(table) < 1 << 16 else owner, kind="stable")
    return np.concatenate(values[::-1])[order], counts, states


def _encode_steps(x: np.ndarray, index: np.ndarray, host: HostTables) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Encode a row a step, last row first; yields (words uint16, lanes that gave one).

    States are whole numbers in float64, where division is vectorized; all of them are exact (below 2^53).
    """
    lanes = len(x)
    flat = torch.from_numpy(index).reshape(-1)
    frequency, first = (
        torch.index_select(t, 0, flat).numpy().reshape(index.shape) for t in (host.frequency, host.first)
    )
    limit = frequency * float(FLOOR << (16 - PRECISION))
    gap = TOTAL - frequency
    quotient, ready = np.empty(lanes), np.empty(lanes, bool)
    half = np.full(lanes, 16, np.uint32)
    for f, c, most, g in zip(frequency[::-1], first[::-1], limit[::-1], gap[::-1], strict=True):
        np.greater_equal(x, most, ready)
        lane = ready.nonzero()[0]
        if len(lane):
            full = x[lane].astype(np.uint32)
            x[lane] = full >> half[: len(lane)]
            yield full.astype(np.uint16), lane
        np.divide(x, f, quotient)
        np.floor(quotient, quotient)
        np.multiply(quotient, g, quotient)
        np.add(x, quotient, x)
        np.add(x, c, x)


def escape_positions(
    symbols: np.ndarray, table: StreamTable, contexts: Contexts, tables: RansTables
) -> tuple[np.ndarray, np.ndarray]:
    """Flat places int64 `[E]` in `[R, N]` of the symbols that escape, stream after stream in decoding order, and
    counts int64 `[S]`."""
    at: list[np.ndarray] = []
    owner: list[np.ndarray] = []
    lane_tables = TableOfLane(table, contexts, tables.count, VALUES)
    host = HostTables.of(tables)
    for batch in batches(table):
        for start, stop, lanes in batch.chunks():
            marked = np.flatnonzero(host.escape_value[_value_index(symbols, batch, start, stop, lane_tables)])
            step, lane = np.divmod(marked, lanes)
            at.append(places(batch, start, step, lane, table.columns))
            owner.append(batch.streams[batch.stream[lane]])
    if not at:
        return np.zeros(0, np.int64), np.zeros(len(table), np.int64)
    owners = np.concatenate(owner)
    return np.concatenate(at)[np.argsort(owners, kind="stable")], np.bincount(owners, minlength=len(table))


def _value_index(symbols: np.ndarray, batch: Batch, start: int, stop: int, lane_tables: TableOfLane) -> np.ndarray:
    """Int32 `[stop − start, active lanes]`: table · 64 + clipped value + 32."""
    index = gather(symbols, batch, start, stop)
    np.clip(index, -VALUES // 2, VALUES // 2 - 1, out=index)
    index += lane_tables.steps(batch, start, stop)
    index += VALUES // 2
    return index
