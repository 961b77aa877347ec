"""`Lengths`: how many tokens every sequence of a cache of fixed size has, on the device and on the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectralquant.geometry import BLOCK, SINKS


class Lengths:
    """Counters int32 `[B]` that captured steps read and write, and their mirror on the host, which costs no wait.

    total = coded + exact. Between steps up to `window` + 127 recent tokens and four sinks are exact; the room for them
    is full when a step would need one place more, and a block of 128 is coded first.
    """

    def __init__(self, batch: int, max_tokens: int, window: int, device: torch.device) -> None:
        self.batch, self.max_tokens, self.window, self.device = batch, max_tokens, window, device
        self.room = SINKS + window + BLOCK
        self.pages = max(1, self.coded_of(max_tokens) // BLOCK)
        self.coded, self.exact, self.total = (torch.zeros(batch, dtype=torch.int32, device=device) for _ in range(3))
        self.place = torch.zeros(batch, dtype=torch.int64, device=device)
        self.host = [0] * batch
        self._exact = [0] * batch

    def coded_of(self, tokens: int) -> int:
        """Tokens that are coded of a sequence of so many: whole blocks between the sinks and the window."""
        return max(0, tokens - SINKS - self.window) // BLOCK * BLOCK

    def start(self, real: Sequence[int]) -> None:
        """Counters after a prompt of `real[b]` tokens a sequence."""
        coded = [self.coded_of(n) for n in real]
        self.host, self._exact = list(real), [n - c for n, c in zip(real, coded, strict=True)]
        for counter, numbers in ((self.total, self.host), (self.coded, coded), (self.exact, self._exact)):
            counter.copy_(torch.tensor(numbers, dtype=torch.int32))

    @property
    def full(self) -> bool:
        """Whether some sequence has no room for one more exact token."""
        return max(self._exact) >= self.room

    @property
    def due(self) -> Tensor:
        """Which sequences have no room for one more exact token, boolean `[B]`."""
        return self.exact >= self.room

    def advance(self) -> None:
        """On the device: one token more a sequence; `place` is where it goes among the exact ones."""
        self.total += 1
        self.place.copy_(self.exact)
        self.exact += 1

    def compressed(self) -> None:
        """On the device: a block of every due sequence has been coded."""
        moved = self.due.int() * BLOCK
        self.coded += moved
        self.exact -= moved

    def note_step(self) -> None:
        """On the host, beside `advance`."""
        self.host = [n + 1 for n in self.host]
        self._exact = [n + 1 for n in self._exact]

    def note_compressed(self) -> None:
        """On the host, beside `compressed`."""
        self._exact = [n - BLOCK if n >= self.room else n for n in self._exact]

    def saved(self) -> tuple[list[Tensor], list[int], list[int]]:
        """What `restore` takes."""
        return [c.clone() for c in (self.coded, self.exact, self.total)], list(self.host), list(self._exact)

    def restore(self, saved: tuple[list[Tensor], list[int], list[int]]) -> None:
        """Counters as they were when they were `saved`."""
        for counter, value in zip((self.coded, self.exact, self.total), saved[0], strict=True):
            counter.copy_(value)
        self.host, self._exact = list(saved[1]), list(saved[2])
