"""`CoderSetting`: a profile's tables on a device, and how a block's symbols are dealt to lanes."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.cold.importance import NEUTRAL, UNSEEN
from spectralquant.codec.cold.symbols import SHIFT_GROUP, SHIFTS, groups
from spectralquant.errors import ProfileError
from sqkernels.entropy import BlockShape, Contexts, RansTables
from sqkernels.entropy.contexts import CLASSES as CLASS_SLOTS
from sqkernels.entropy.tables import FRACTION, PRECISION, TOTAL

LANE_BITS, LANE_BITS_FREE = 24, 8  # what a lane costs, without and with side bytes in its first state
LANES_SHARE = 0.008


class CoderSetting:
    """What coding and decoding share.

    tables: float32 `[K, 32]` probabilities (31 symbols −15…15, then escape). choice: per kind uint8 `[9 or 10, R]`, the
    table of each importance class and component (the tenth: of tokens unseen).

    Raises:
        ProfileError: tables that are no probabilities, or a choice among tables that are not there.
    """

    def __init__(
        self, tables: Tensor | RansTables, choice: tuple[Tensor, Tensor], device: torch.device | str = "cpu"
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
        self.classes = both.shape[1]
        padded[:, : self.classes] = both
        self.choice = padded.to(self.device)
        group = [torch.arange(r) // SHIFT_GROUP for r in self.ranks]
        self.group = torch.cat([group[0], group[1] + groups(self.ranks[0])]).int().to(self.device)
        neutral = both[:, NEUTRAL].long()
        self.expected_bits = int(self.tables.entropy[neutral].sum()) // FRACTION  # a token, times 1,024
        self.expected_escapes = int(self.tables.frequency[neutral, -1].sum())  # likewise

    @property
    def unseen(self) -> int:
        """The class of tokens whose attention nobody saw; the neutral one where a profile has no tables for them."""
        return UNSEEN if self.classes > UNSEEN else NEUTRAL

    @functools.cached_property
    def least_bits(self) -> float:
        """Bits of a token whose symbols all are the likeliest ones, of the cheapest class and with the best shifts."""
        best = PRECISION - self.tables.frequency.max(1).values.double().log2()
        shifted = [best[(torch.arange(len(best)) + shift).clamp(0, len(best) - 1)] for shift in SHIFTS]
        symbols = torch.stack(shifted).min(0).values[self.choice.cpu().long()]
        parts = symbols[: self.ranks[0]], symbols[self.ranks[0] :]
        return sum(float(part[:, : self.classes].sum(0).min()) for part in parts)

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

    def contexts(self, classes: Tensor, shifts: np.ndarray | None) -> Contexts:
        """Which table codes which symbol; shifts: uint8 indices `[B, groups]`, or None."""
        if shifts is None:
            return Contexts(self.choice, classes, self.ranks[0])
        amounts = torch.tensor(SHIFTS, dtype=torch.int16)[torch.from_numpy(shifts.astype(np.int64))]
        return Contexts(self.choice, classes, self.ranks[0], amounts.to(self.device), self.group)
