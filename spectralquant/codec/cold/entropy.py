"""`EntropyCoder`: symbols of blocks to bytes with static tables chosen per component and importance class, and back.

Symbols are range coded by thousands of lanes at once (`sqkernels.entropy`), on a GPU or a CPU with the same bytes. Values
beyond ±15, and those that a table gives no frequency, take an escape symbol and travel beside (`codec.rans_block`).

Tables are ordered by entropy, so a neighbouring table is a slightly wider or narrower distribution. On text unlike
the calibration's, an adaptive block moves groups of sixteen components up or down that order; the shifts travel in
the block (forward adaptation: every block is still decoded alone).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.cold.importance import CLASSES, NEUTRAL
from spectralquant.codec.cold.rans_block import DIGITS, WIDE, RansParts
from spectralquant.codec.cold.symbols import NO_SHIFT, SHIFT_GROUP, SHIFTS, groups
from spectralquant.codec.cold.table_shifts import ShiftSearch
from spectralquant.errors import PacketError, ProfileError
from sqkernels.entropy import BlockShape, Contexts, RansTables, StreamTable, decode, encode, escape_positions
from sqkernels.entropy.contexts import CLASSES as CLASS_SLOTS
from sqkernels.entropy.tables import FRACTION, PRECISION, TOTAL

LANE_BITS, LANE_BITS_FREE = 24, 8  # what a lane costs, without and with side bytes in its first state
LANES_SHARE = 0.008


@dataclass(frozen=True)
class CodedSymbols:
    """Some blocks after entropy decoding. symbols: int16 or int32 `[R, N]`, keys' components first, blocks side by side.
    classes: int64 `[N, 2]`. ids: each block's id before it and its ids `[T]` (−1: unknown), or None."""

    symbols: Tensor
    classes: Tensor
    ids: tuple[tuple[int, np.ndarray] | None, ...]


class EntropyCoder:
    """Coder for blocks of key and value symbols.

    tables: float32 `[K, 32]` probabilities (31 symbols −15…15, then escape). choice: per kind uint8 `[9, R]`, the table
    of each importance class and component. search: of another coder with the same tables.

    Raises:
        ProfileError: tables that are no probabilities, or a choice among tables that are not there.
    """

    def __init__(
        self,
        tables: Tensor | RansTables,
        choice: tuple[Tensor, Tensor],
        device: torch.device | str = "cpu",
        search: ShiftSearch | None = None,
    ) -> None:
        try:
            self.tables = tables if isinstance(tables, RansTables) else RansTables.of(tables)
        except ValueError as error:
            raise ProfileError(f"The profile's frequency tables are damaged: {error}. Calibrate again.") from error
        self.device = torch.device(device)
        self.ranks = (choice[0].shape[1], choice[1].shape[1])
        both = torch.cat([c.cpu() for c in choice], dim=1).T
        if both.numel() and int(both.max()) >= self.tables.count:
            raise ProfileError(f"The profile names a table beyond the {self.tables.count} it has. Calibrate again.")
        padded = torch.zeros(len(both), CLASS_SLOTS, dtype=torch.uint8)
        padded[:, :CLASSES] = both
        self.choice = padded.to(self.device)
        group = [torch.arange(r) // SHIFT_GROUP for r in self.ranks]
        self.group = torch.cat([group[0], group[1] + groups(self.ranks[0])]).int().to(self.device)
        neutral = both[:, NEUTRAL].long()
        self.expected_bits = int(self.tables.entropy[neutral].sum()) // FRACTION  # a token, times 1,024
        self.expected_escapes = int(self.tables.frequency[neutral, -1].sum())  # likewise
        self.search = search or ShiftSearch(self.tables, self.device)

    @functools.cached_property
    def least_bits(self) -> float:
        """Bits of a token whose symbols all are the likeliest ones, of the cheapest class and with the best shifts."""
        best = PRECISION - self.tables.frequency.max(1).values.double().log2()
        shifted = [best[(torch.arange(len(best)) + shift).clamp(0, len(best) - 1)] for shift in SHIFTS]
        symbols = torch.stack(shifted).min(0).values[self.choice.cpu().long()]
        parts = symbols[: self.ranks[0]], symbols[self.ranks[0] :]
        return sum(float(part[:, :CLASSES].sum(0).min()) for part in parts)

    def least_bytes(self, tokens: int) -> int:
        """Bytes of streams, states, words and tail that `tokens` tokens take at the very least, ids aside.

        A lane's state of four bytes holds two of side bytes and at most two of coded symbols.
        """
        return 4 + max(4, int(tokens * self.least_bits / 8))

    @property
    def rows(self) -> int:
        """R, components of keys and values."""
        return sum(self.ranks)

    def shape(self, tokens: int, id_bytes: int) -> BlockShape:
        """As many lanes as cost `LANES_SHARE` of what a block of `tokens` tokens should take.

        A lane's final state costs 24 bits, or 8 where its first state carries two side bytes.
        """
        budget = int(LANES_SHARE * 1000) * (self.expected_bits * tokens // TOTAL) // 1000
        free = (id_bytes + self.expected_escapes * tokens // TOTAL) // 2
        lanes = budget // LANE_BITS_FREE
        if lanes > free:
            lanes = free + (budget - LANE_BITS_FREE * free) // LANE_BITS
        if lanes >= tokens:
            return BlockShape(tokens, max(1, tokens), max(1, min(lanes // max(1, tokens), self.rows)))
        each = -(-tokens // max(1, lanes))
        return BlockShape(tokens, -(-tokens // each), 1)

    def encode(
        self,
        symbols: Tensor,
        classes: Tensor,
        lengths: Sequence[int],
        ids: Sequence[tuple[int, np.ndarray] | None],
        *,
        adaptive: bool = False,
    ) -> list[RansParts]:
        """Code blocks of `lengths` tokens: symbols int32 `[R, N]`, classes `[N, 2]`, ids as in `CodedSymbols`."""
        written = [_id_bytes(i) for i in ids]
        shapes = [self.shape(n, len(w)) for n, w in zip(lengths, written, strict=True)]
        table = StreamTable.of(shapes, self.rows)
        classes = classes.T.to(self.device, torch.uint8).contiguous()
        shifts = self._best_shifts(symbols, classes, lengths) if adaptive else None
        contexts = self._contexts(classes, shifts)
        positions, escapes = escape_positions(symbols, table, contexts, self.tables)
        values = symbols.reshape(-1)[positions].cpu().numpy()
        escapes = escapes.cpu().numpy()
        sides = [
            np.concatenate([w, *_escape_bytes(v)])
            for w, v in zip(written, _pieces(values, table.per_block(escapes)), strict=True)
        ]
        held = [np.pad(s[: 2 * n], (0, max(0, 2 * n - len(s)))) for s, n in _with_lanes(sides, shapes)]
        initial = torch.from_numpy(np.concatenate(held).view("<u2")).to(self.device)
        coded = encode(symbols, initial, table, contexts, self.tables)
        counts = coded.counts.cpu().numpy()
        words = _pieces(coded.words.cpu().numpy(), table.per_block(counts))
        states = _pieces(coded.states.cpu().numpy(), np.array([s.total_lanes for s in shapes]))
        streams = _pieces(np.stack([counts, escapes], axis=1), np.array([s.streams for s in shapes]))
        columns = _pieces(classes.cpu().numpy().T, np.array(lengths))
        return [
            RansParts(
                shape,
                0 if ids[i] is None else _id_width(*ids[i]),
                streams[i],
                (len(sides[i]) - len(written[i]) - int(streams[i][:, 1].sum())) // 4,
                columns[i].T if (columns[i] != NEUTRAL).any() else None,
                None if shifts is None or (shifts[i] == NO_SHIFT).all() else shifts[i],
                states[i],
                words[i],
                sides[i][2 * shape.total_lanes :],
            )
            for i, shape in enumerate(shapes)
        ]

    def decode(self, blocks: Sequence[RansParts]) -> CodedSymbols:
        """Inverse of `encode`.

        Raises:
            PacketError: the words, states or side bytes do not belong to these tables.
        """
        for b in blocks:
            if b.shape.tokens * self.least_bits > 16 * (len(b.words) + len(b.states)):
                raise PacketError(
                    f"A block announces {b.shape.tokens} tokens, but {len(b.words)} words cannot code that many with this "
                    "profile's tables."
                )
        table = StreamTable.of([b.shape for b in blocks], self.rows)
        neutral = [np.full((2, b.shape.tokens), NEUTRAL, np.uint8) if b.classes is None else b.classes for b in blocks]
        classes = torch.from_numpy(np.concatenate(neutral, axis=1)).to(self.device)
        shifts = None
        if any(b.shifts is not None for b in blocks):
            none = np.full(groups(self.ranks[0]) + groups(self.ranks[1]), NO_SHIFT, np.uint8)
            shifts = np.stack([none if b.shifts is None else b.shifts for b in blocks])
        streams = torch.from_numpy(np.concatenate([b.streams for b in blocks]))
        try:
            result = decode(
                torch.from_numpy(np.concatenate([b.words for b in blocks])).to(self.device),
                streams[:, 0].contiguous(),
                torch.from_numpy(np.concatenate([b.states for b in blocks])).to(self.device),
                streams[:, 1].contiguous(),
                table,
                self._contexts(classes, shifts),
                self.tables,
                dtype=torch.int32 if any(b.wide for b in blocks) else torch.int16,
            )
        except ValueError as error:
            raise PacketError(f"A block contradicts its profile: {error}.") from error
        if bool(result.status.any()):
            raise PacketError("A block's entropy-coded words are damaged.")
        finals = _pieces(result.finals.cpu().numpy(), np.array([b.shape.total_lanes for b in blocks]))
        ids, values = zip(*(_side(b, f.view(np.uint8)) for b, f in zip(blocks, finals, strict=True)), strict=True)
        escaped = torch.from_numpy(np.concatenate(values)).to(self.device, result.symbols.dtype)
        result.symbols.view(-1)[result.positions] = escaped
        return CodedSymbols(result.symbols, classes.T.long(), ids)

    def ideal_bits(self, symbols: Tensor, classes: Tensor) -> float:
        """Bits that the tables charge for symbols int32 `[R, N]` and classes `[N, 2]`, eight for each escaped value."""
        classes = classes.T.to(self.device, torch.uint8)
        stated = bool((classes != NEUTRAL).any()) * classes.numel() * 16 / DIGITS
        return self.search.bits(symbols, self._tables_of(classes)) + stated

    def _tables_of(self, classes: Tensor) -> Tensor:
        """Int64 `[R, N]`: the table of every symbol."""
        split = self.ranks[0]
        parts = self.choice[:split][:, classes[0].long()], self.choice[split:][:, classes[1].long()]
        return torch.cat(parts).long()

    def _best_shifts(self, symbols: Tensor, classes: Tensor, lengths: Sequence[int]) -> np.ndarray | None:
        found = self.search.best(symbols, self._tables_of(classes), self.group, lengths)
        return None if (found == NO_SHIFT).all() else found

    def _contexts(self, classes: Tensor, shifts: np.ndarray | None) -> Contexts:
        if shifts is None:
            return Contexts(self.choice, classes, self.ranks[0])
        amounts = torch.tensor(SHIFTS, dtype=torch.int16)[torch.from_numpy(shifts.astype(np.int64))]
        return Contexts(self.choice, classes, self.ranks[0], amounts.to(self.device), self.group)


def _pieces(array: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    return np.split(array, np.cumsum(counts)[:-1])


def _with_lanes(sides: Sequence[np.ndarray], shapes: Sequence[BlockShape]) -> list[tuple[np.ndarray, int]]:
    return [(side, shape.total_lanes) for side, shape in zip(sides, shapes, strict=True)]


def _id_width(previous: int, ids: np.ndarray) -> int:
    return 2 if max(int(ids.max(initial=0)), previous) < 0xFFFF else 4


def _id_bytes(ids: tuple[int, np.ndarray] | None) -> np.ndarray:
    if ids is None:
        return np.zeros(0, np.uint8)
    both = np.concatenate([[ids[0]], ids[1]])
    return both.astype(f"<u{_id_width(*ids)}", casting="unsafe").view(np.uint8)


def _escape_bytes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A byte for each escaped value, and the bytes of those that need more."""
    v = values.astype(np.int64)
    folded = np.where(v >= 0, 2 * v, -2 * v - 1)
    wide = folded >= WIDE
    return np.where(wide, WIDE, folded).astype(np.uint8), values[wide].astype("<i4").view(np.uint8)


def _side(block: RansParts, held: np.ndarray) -> tuple[tuple[int, np.ndarray] | None, np.ndarray]:
    """Ids and escaped values int32 `[E]` from what the lanes held and the tail.

    Raises:
        PacketError: the bytes do not fit together.
    """
    both = np.concatenate([held, block.tail])
    if both[block.side :].any():
        raise PacketError("A block's lanes end with data that nothing asks for.")
    at, count = block.id_bytes, block.escapes
    folded = both[at : at + count].astype(np.int32)
    wide = folded == WIDE
    if int(wide.sum()) != block.wide:
        raise PacketError("A block holds another number of wide values than it announces.")
    values = np.where(folded & 1, -(folded + 1) // 2, folded // 2)
    values[wide] = both[at + count : block.side].view("<i4")
    if not block.id_width:
        return None, values
    ids = both[:at].view(f"<u{block.id_width}").astype(np.int64)
    ids = np.where(ids == (1 << 8 * block.id_width) - 1, -1, ids)
    return (int(ids[0]), ids[1:]), values
