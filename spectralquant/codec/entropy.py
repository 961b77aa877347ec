"""`EntropyCoder`: symbols to bytes with static tables chosen per component and importance class.

An asymmetric-numeral-systems coder (the `constriction` library; Duda 2013, arXiv 1311.2540) codes all symbols of a
block in one stream. Symbols are grouped by table, which the decoder can redo because the grouping depends only on
the classes it has decoded first. Values beyond ±15 take an escape symbol and travel as plain integers.
"""

from __future__ import annotations

import constriction
import numpy as np

from spectralquant.errors import PacketError

SPAN = 15
ALPHABET = 2 * SPAN + 2
ESCAPE = ALPHABET - 1

Array = np.ndarray


class EntropyCoder:
    """Coder for blocks of key and value symbols.

    tables: float32 `[K, 32]` probabilities (31 symbols −15…15, then escape). choice: per kind uint8 `[9, R]`, the table
    of each importance class and component. class_tables: float32 `[2, 9]` probabilities of the importance classes.
    """

    def __init__(self, tables: Array, choice: tuple[Array, Array], class_tables: Array) -> None:
        self.tables = np.ascontiguousarray(tables, dtype=np.float64)
        self.choice = choice
        self._models = [_categorical(row) for row in self.tables]
        self.class_tables = np.asarray(class_tables, dtype=np.float64)
        self._class_models = [_categorical(row) for row in class_tables]

    def encode(self, symbols: tuple[Array, Array], classes: Array) -> tuple[Array, Array]:
        """Words uint32 and escapes int32 of key and value symbols int32 `[T, R]` with classes `[T, 2]`."""
        coder = constriction.stream.stack.AnsCoder()
        escapes: list[Array] = []
        for kind in (1, 0):
            order, counts = self._grouping(kind, classes[:, kind])
            flat = symbols[kind].reshape(-1)[order]
            outside = np.abs(flat) > SPAN
            index = np.where(outside, ESCAPE, flat + SPAN).astype(np.int32)
            escapes.insert(0, flat[outside])
            stop = len(index)
            for table in reversed(range(len(counts))):
                start = stop - counts[table]
                if start < stop:
                    coder.encode_reverse(index[start:stop], self._models[table])
                stop = start
        for kind in (1, 0):
            coder.encode_reverse(classes[:, kind].astype(np.int32), self._class_models[kind])
        return coder.get_compressed(), np.concatenate(escapes).astype(np.int32)

    def decode(self, words: Array, escapes: Array, tokens: int) -> tuple[tuple[Array, Array], Array]:
        """Inverse of `encode`.

        Raises:
            PacketError: the words or escapes do not belong to these tables.
        """
        try:
            coder = constriction.stream.stack.AnsCoder(np.ascontiguousarray(words, dtype=np.uint32))
        except ValueError as error:
            raise PacketError("A block's entropy-coded words are damaged.") from error
        classes = np.stack([coder.decode(model, tokens) for model in self._class_models], axis=1)
        out, used = [], 0
        for kind in (0, 1):
            order, counts = self._grouping(kind, classes[:, kind])
            parts = [coder.decode(self._models[t], int(n)) for t, n in enumerate(counts) if n]
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

    def ideal_bits(self, symbols: tuple[Array, Array], classes: Array) -> float:
        """Cross-entropy in bits under the tables, escapes at 32 bits each: what `encode` could at best reach."""
        bits = 0.0
        for kind in (0, 1):
            table = self.choice[kind][classes[:, kind]]
            index = np.where(np.abs(symbols[kind]) > SPAN, ESCAPE, symbols[kind] + SPAN)
            bits -= np.log2(self.tables[table, index]).sum() - 32.0 * (index == ESCAPE).sum()
            bits -= np.log2(self.class_tables[kind][classes[:, kind]]).sum()
        return float(bits)

    def _grouping(self, kind: int, classes: Array) -> tuple[Array, Array]:
        """Order that sorts the flattened `[T, R]` symbols by table, and symbols per table."""
        table = self.choice[kind][classes].reshape(-1)
        return np.argsort(table, kind="stable"), np.bincount(table, minlength=len(self._models))


def _categorical(probabilities: Array) -> constriction.stream.model.Categorical:
    row = np.ascontiguousarray(probabilities, dtype=np.float64)
    return constriction.stream.model.Categorical(row / row.sum(), perfect=False)
