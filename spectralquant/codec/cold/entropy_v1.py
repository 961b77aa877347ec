"""Blocks of packets of format version 1: one asymmetric-numeral-systems stream a block (the `constriction` library).

Symbols are grouped by table, which a reader can redo because the grouping depends only on the classes it has decoded
first. Values beyond ±15 take the escape symbol and travel as plain integers. Only reading is left; `codec.entropy` writes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from spectralquant.codec.cold.symbols import ESCAPE, SHIFT_GROUP, SHIFTS, SPAN, groups
from spectralquant.errors import PacketError

if TYPE_CHECKING:
    import constriction

SHIFT_PROBABILITIES = np.array([0.5 ** abs(i - len(SHIFTS) // 2) for i in range(len(SHIFTS))])

Array = np.ndarray


class EntropyReaderV1:
    """Decoder for blocks of key and value symbols.

    tables: float32 `[K, 32]` probabilities (31 symbols −15…15, then escape). choice: per kind uint8 `[9, R]`, the table
    of each importance class and component. class_tables: float32 `[2, 9]` probabilities of the importance classes.
    """

    def __init__(self, tables: Array, choice: tuple[Array, Array], class_tables: Array) -> None:
        self.tables = np.ascontiguousarray(tables, dtype=np.float64)
        self.choice = choice
        self.class_tables = np.asarray(class_tables, dtype=np.float64)
        self.least_bits = sum(self._least_bits(kind) for kind in range(2))

    @functools.cached_property
    def models(self) -> list[constriction.stream.model.Categorical]:
        """The tables as the library rounds them."""
        return [categorical(row) for row in self.tables]

    @functools.cached_property
    def class_models(self) -> list[constriction.stream.model.Categorical]:
        return [categorical(row) for row in self.class_tables]

    @functools.cached_property
    def shift_model(self) -> constriction.stream.model.Categorical:
        return categorical(SHIFT_PROBABILITIES)

    def decode(
        self, words: Array, escapes: Array, tokens: int, *, adaptive_tables: bool = False
    ) -> tuple[tuple[Array, Array], Array]:
        """Key and value symbols int32 `[T, R]` and classes `[T, 2]` of words uint32 and escapes int32.

        Raises:
            PacketError: the words or escapes do not belong to these tables.
        """
        import constriction

        if len(words) < self.least_words(tokens):
            raise PacketError(
                f"A block announces {tokens} tokens, but {len(words)} words cannot code that many with this profile's tables."
            )
        try:
            coder = constriction.stream.stack.AnsCoder(np.ascontiguousarray(words, dtype=np.uint32))
        except ValueError as error:
            raise PacketError("A block's entropy-coded words are damaged.") from error
        classes = np.stack([coder.decode(model, tokens) for model in self.class_models], axis=1)
        out, used = [], 0
        for kind in (0, 1):
            shifts = None
            if adaptive_tables:
                shifts = coder.decode(self.shift_model, groups(self.choice[kind].shape[1]))
            order, counts = self.grouping(kind, classes[:, kind], shifts)
            parts = [coder.decode(self.models[t], int(n)) for t, n in enumerate(counts) if n]
            flat = np.concatenate(parts) if parts else np.zeros(0, np.int32)
            outside = np.flatnonzero(flat == ESCAPE)
            flat = flat - SPAN
            if used + len(outside) > len(escapes):
                raise PacketError("A block holds fewer escaped values than its symbols announce.")
            flat[outside] = escapes[used : used + len(outside)]
            used += len(outside)
            symbols = np.empty_like(flat)
            symbols[order] = flat
            out.append(symbols.reshape(tokens, -1))
        if used != len(escapes) or not coder.is_empty():
            raise PacketError("A block holds data that its symbols do not use up.")
        return (out[0], out[1]), classes

    def least_words(self, tokens: int) -> int:
        """Words that `tokens` tokens take at the very least, whatever they are: no tokens are decoded from fewer.

        The coder's state holds up to 64 bits that cost no word, and an empty stream decodes to any number of first symbols.
        """
        return max(0, int((tokens * self.least_bits - 64) / 32))

    def _least_bits(self, kind: int) -> float:
        """Bits of a token's keys or values if it is of the cheapest class and all its symbols are the most likely ones."""
        best = np.minimum(self.tables.max(1) / np.maximum(self.tables.sum(1), 1e-300) + 2.0**-20, 1.0)
        cost = -np.log2(best)
        shifted = [cost[np.clip(np.arange(len(cost)) + shift, 0, len(cost) - 1)] for shift in SHIFTS]
        symbols = np.min(shifted, axis=0)[self.choice[kind]].sum(1)
        classes = self.class_tables[kind] / max(float(self.class_tables[kind].sum()), 1e-300)
        with np.errstate(divide="ignore"):
            return float(np.min(symbols - np.log2(np.minimum(classes + 2.0**-20, 1.0))))

    def grouping(self, kind: int, classes: Array, shifts: Array | None) -> tuple[Array, Array]:
        """Order that sorts the flattened `[T, R]` symbols by table, and symbols per table."""
        table = self.choice[kind][classes]
        if shifts is not None:
            per_component = np.repeat(np.array(SHIFTS)[shifts], SHIFT_GROUP)[: table.shape[1]]
            table = np.clip(table.astype(np.int64) + per_component, 0, len(self.tables) - 1).astype(np.uint8)
        table = table.reshape(-1)
        return np.argsort(table, kind="stable"), np.bincount(table, minlength=len(self.tables))


def categorical(probabilities: Array) -> constriction.stream.model.Categorical:
    """A table as the library rounds it."""
    import constriction

    row = np.ascontiguousarray(probabilities, dtype=np.float64)
    return constriction.stream.model.Categorical(row / row.sum(), perfect=False)
