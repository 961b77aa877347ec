"""`EntropyCoder`: symbols to bytes with static tables chosen per component and importance class.

An asymmetric-numeral-systems coder (the `constriction` library; Duda 2013, arXiv 1311.2540) codes all symbols of a
block in one stream. Symbols are grouped by table, which the decoder can redo because the grouping depends only on
the classes it has decoded first. Values beyond ±15 take an escape symbol and travel as plain integers.

Tables are ordered by entropy, so a neighbouring table is a slightly wider or narrower distribution. On text unlike
the calibration's, an adaptive block moves groups of sixteen components up or down that order; the shifts travel in
the block (forward adaptation: every block is still decoded alone).
"""

from __future__ import annotations

import constriction
import numpy as np

from spectralquant.errors import PacketError

SPAN = 15
ALPHABET = 2 * SPAN + 2
ESCAPE = ALPHABET - 1
SHIFTS = (-48, -32, -20, -10, -4, 0, 4, 10, 20, 32, 48)
SHIFT_GROUP = 16
SHIFT_PROBABILITIES = np.array([0.5 ** abs(i - len(SHIFTS) // 2) for i in range(len(SHIFTS))])
NO_SHIFT = len(SHIFTS) // 2

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
        self._shift_model = _categorical(SHIFT_PROBABILITIES)
        self.least_bits = sum(self._least_bits(kind) for kind in range(2))

    def encode(
        self, symbols: tuple[Array, Array], classes: Array, shifts: tuple[Array, Array] | None = None
    ) -> tuple[Array, Array]:
        """Words uint32 and escapes int32 of key and value symbols int32 `[T, R]` with classes `[T, 2]`.

        With `shifts` (see `best_shifts`) the block is adaptive; `decode` must be told so.
        """
        coder = constriction.stream.stack.AnsCoder()
        escapes: list[Array] = []
        for kind in (1, 0):
            order, counts = self._grouping(kind, classes[:, kind], None if shifts is None else shifts[kind])
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
            if shifts is not None:
                coder.encode_reverse(shifts[kind].astype(np.int32), self._shift_model)
        for kind in (1, 0):
            coder.encode_reverse(classes[:, kind].astype(np.int32), self._class_models[kind])
        return coder.get_compressed(), np.concatenate(escapes).astype(np.int32)

    def decode(
        self, words: Array, escapes: Array, tokens: int, *, adaptive: bool = False
    ) -> tuple[tuple[Array, Array], Array]:
        """Inverse of `encode`.

        Raises:
            PacketError: the words or escapes do not belong to these tables.
        """
        if len(words) < self.least_words(tokens):
            raise PacketError(
                f"A block announces {tokens} tokens, but {len(words)} words cannot code that many with this profile's tables."
            )
        try:
            coder = constriction.stream.stack.AnsCoder(np.ascontiguousarray(words, dtype=np.uint32))
        except ValueError as error:
            raise PacketError("A block's entropy-coded words are damaged.") from error
        classes = np.stack([coder.decode(model, tokens) for model in self._class_models], axis=1)
        out, used = [], 0
        for kind in (0, 1):
            shifts = None
            if adaptive:
                shifts = coder.decode(self._shift_model, _groups(self.choice[kind].shape[1]))
            order, counts = self._grouping(kind, classes[:, kind], shifts)
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

    def ideal_bits(self, symbols: tuple[Array, Array], classes: Array) -> float:
        """Cross-entropy in bits under the tables, escapes at 32 bits each: what `encode` could at best reach."""
        bits = 0.0
        for kind in (0, 1):
            table = self.choice[kind][classes[:, kind]]
            index = np.where(np.abs(symbols[kind]) > SPAN, ESCAPE, symbols[kind] + SPAN)
            bits -= np.log2(self.tables[table, index]).sum() - 32.0 * (index == ESCAPE).sum()
            bits -= np.log2(self.class_tables[kind][classes[:, kind]]).sum()
        return float(bits)

    def best_shifts(self, symbols: tuple[Array, Array], classes: Array) -> tuple[Array, Array]:
        """For each group of sixteen components the shift (index into SHIFTS) of least code length, side bits included."""
        side = -np.log2(SHIFT_PROBABILITIES / SHIFT_PROBABILITIES.sum())
        lengths = -np.log2(self.tables)
        out = []
        for kind in (0, 1):
            table = self.choice[kind][classes[:, kind]].astype(np.int64)
            index = np.where(np.abs(symbols[kind]) > SPAN, ESCAPE, symbols[kind] + SPAN)
            count = _groups(table.shape[1])
            edges = np.arange(0, table.shape[1], SHIFT_GROUP)
            cost = np.empty((len(SHIFTS), count))
            for i, shift in enumerate(SHIFTS):
                moved = np.clip(table + shift, 0, len(self.tables) - 1)
                cost[i] = np.add.reduceat(lengths[moved, index].sum(0), edges) + side[i]
            out.append(cost.argmin(0).astype(np.int32))
        return out[0], out[1]

    def _grouping(self, kind: int, classes: Array, shifts: Array | None) -> tuple[Array, Array]:
        """Order that sorts the flattened `[T, R]` symbols by table, and symbols per table."""
        table = self.choice[kind][classes]
        if shifts is not None:
            per_component = np.repeat(np.array(SHIFTS)[shifts], SHIFT_GROUP)[: table.shape[1]]
            table = np.clip(table.astype(np.int64) + per_component, 0, len(self.tables) - 1).astype(np.uint8)
        table = table.reshape(-1)
        return np.argsort(table, kind="stable"), np.bincount(table, minlength=len(self._models))


def _groups(rank: int) -> int:
    return -(-rank // SHIFT_GROUP)


def _categorical(probabilities: Array) -> constriction.stream.model.Categorical:
    row = np.ascontiguousarray(probabilities, dtype=np.float64)
    return constriction.stream.model.Categorical(row / row.sum(), perfect=False)
