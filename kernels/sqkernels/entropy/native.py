"""Decoding and encoding on the CPU in C (`coder.c`): the same bytes as `reference`, several times as fast.

The lanes of a stream are coded together; streams go to as many threads as torch may use.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from sqkernels.entropy.compiled import NotCompiledError, library
from sqkernels.entropy.contexts import Contexts
from sqkernels.entropy.layout import StreamTable
from sqkernels.entropy.tables import RansTables

SOURCE = Path(__file__).with_name("coder.c")
LEAST_SYMBOLS = 1 << 16  # that are worth a thread
USUAL_ESCAPES = 64  # at most one symbol of so many escapes; where more do, they are looked for twice


def available() -> bool:
    """Whether it was compiled, or could be just now."""
    return missing() is None


def missing() -> str | None:
    """Why it is not there, or None where it is."""
    coder = library(SOURCE)
    return str(coder) if isinstance(coder, NotCompiledError) else None


class _Setting(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("fields", "choice", "classes", "shifts", "group")] + [
        (name, ctypes.c_int64) for name in ("split", "columns", "groups", "tables", "alphabet")
    ]


class _Call:
    """A function of the library for the streams of a table."""

    def __init__(self, table: StreamTable, contexts: Contexts, tables: RansTables) -> None:
        coder = library(SOURCE)
        if isinstance(coder, NotCompiledError):
            raise RuntimeError(
                f"The compiled coder is not there ({coder}). Install a C compiler, or use backend='reference'."
            )
        self.coder, self.table = coder, table
        shifts = None if contexts.shifts is None else np.ascontiguousarray(contexts.shifts.numpy())
        group = None if contexts.group is None else np.ascontiguousarray(contexts.group.numpy())
        self.arrays = (
            np.ascontiguousarray(table.fields),
            np.ascontiguousarray(contexts.choice.numpy()),
            np.ascontiguousarray(contexts.classes.numpy()),
            shifts,
            group,
        )
        groups = 0 if shifts is None else shifts.shape[1]
        self.setting = _Setting(
            *map(_place, self.arrays), contexts.split, table.columns, groups, tables.count, tables.alphabet
        )

    def __call__(self, name: str, *arrays: np.ndarray | None) -> None:
        """Run a function on `arrays`, the streams spread over threads."""
        function: Callable[..., None] = getattr(self.coder, name)
        function.restype = None
        places = [ctypes.c_void_p(_place(a)) for a in arrays]
        setting = ctypes.byref(self.setting)
        cuts = self._cuts()

        def part(first: int, last: int) -> None:
            function(setting, ctypes.c_int64(first), ctypes.c_int64(last), *places)

        threads = [threading.Thread(target=part, args=pair) for pair in pairwise(cuts[1:])]
        for thread in threads:
            thread.start()
        part(cuts[0], cuts[1])
        for thread in threads:
            thread.join()

    def _cuts(self) -> list[int]:
        """Streams at which a thread ends and the next begins: about as many symbols each."""
        symbols = np.cumsum(self.table.steps * self.table.fields[:, 5])
        whole = int(symbols[-1]) if len(symbols) else 0
        threads = max(1, min(torch.get_num_threads(), len(symbols), whole // LEAST_SYMBOLS))
        inner = np.searchsorted(symbols, [whole * i // threads for i in range(1, threads)], side="right")
        return [0, *inner.tolist(), len(symbols)]


def _place(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


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
    """See `reference.decode`."""
    call = _Call(table, contexts, tables)
    words, counts, states, escapes = map(np.ascontiguousarray, (words, counts, states, escapes))
    positions = np.full(int(escapes.sum()), -1, np.int64)
    finals, status = np.zeros(len(states), np.uint16), np.zeros(len(table), np.int32)
    small = out if out.dtype == np.int8 and out.flags.c_contiguous else np.zeros(out.shape, np.int8)
    begins, escape_begins = np.cumsum(counts) - counts, np.cumsum(escapes) - escapes
    slots = tables.slots.contiguous().numpy()
    call("sq_decode", slots, words, begins, counts, states, escape_begins, escapes, small, positions, finals, status)
    if small is not out:
        out[...] = small
    return positions, finals, status


def encode(
    symbols: np.ndarray, initial: np.ndarray, table: StreamTable, contexts: Contexts, tables: RansTables
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `reference.encode`."""
    call = _Call(table, contexts, tables)
    symbols, initial = np.ascontiguousarray(symbols, np.int32), np.ascontiguousarray(initial)
    rooms = np.concatenate([[0], np.cumsum(table.steps * table.fields[:, 5])])  # a word a symbol at most
    words = np.empty(int(rooms[-1]), np.uint16)
    counts, states = np.zeros(len(table), np.int64), np.empty(len(initial), np.uint32)
    call("sq_encode", tables.symbols.contiguous().numpy(), symbols, initial, rooms, words, counts, states)
    return _joined(words, rooms[1:] - counts, counts), counts, states


def escape_positions(
    symbols: np.ndarray, table: StreamTable, contexts: Contexts, tables: RansTables
) -> tuple[np.ndarray, np.ndarray]:
    """See `reference.escape_positions`."""
    call = _Call(table, contexts, tables)
    symbols, entries = np.ascontiguousarray(symbols, np.int32), tables.symbols.contiguous().numpy()
    counts = np.zeros(len(table), np.int64)
    room = table.steps * table.fields[:, 5] // USUAL_ESCAPES
    while True:
        rooms = np.concatenate([[0], np.cumsum(room)])
        positions = np.empty(int(rooms[-1]), np.int64)
        call("sq_escapes", entries, symbols, rooms, positions, counts)
        if (counts <= room).all():
            return _joined(positions, rooms[:-1], counts), counts
        room = counts


def _joined(array: np.ndarray, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Some elements from each of `first` on."""
    parts = [array[at : at + count] for at, count in zip(first, counts, strict=True)]
    return np.concatenate([np.zeros(0, array.dtype), *parts])
