"""Frequency tables in integers, so that every machine codes and decodes alike.

The rounding rule. A float32 probability p is the integer floor(p · 2^40), its weight; no other float arithmetic happens.
A value whose weight is under 1/(16 · 1024) of the table's sum gets no frequency: it escapes, as values outside the table
do. The rest share 1,024 in proportion to their weights, rounded half up and at least 1; what is then missing or too much
goes to the most frequent one (the first of equals). The last symbol is the escape and always has a frequency.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

PRECISION = 10
TOTAL = 1 << PRECISION
WEIGHT_BITS = 40
DROP = 16
SYMBOL_BITS = 5
MAX_ALPHABET = 1 << SYMBOL_BITS
FRACTION = 16
VALUES = 64


def frequencies(probabilities: Tensor) -> Tensor:
    """Frequencies int32 `[K, A]`, rows summing to 1,024, of probabilities float32 `[K, A]`; the last symbol escapes.

    Raises:
        ValueError: not float32, not finite, negative, over 1 or a row without any weight.
    """
    if probabilities.dtype != torch.float32 or probabilities.dim() != 2 or probabilities.shape[1] > MAX_ALPHABET:
        raise ValueError(f"probabilities must be float32 [K, A] with A of at most {MAX_ALPHABET}")
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError("probabilities must lie between 0 and 1")
    weight = (probabilities.cpu().double() * 2.0**WEIGHT_BITS).long()
    total = weight.sum(1, keepdim=True)
    if bool((total == 0).any()):
        raise ValueError("a table has no weight at all")
    kept = weight * (DROP * TOTAL) >= total
    kept[:, -1] = True
    weight = weight * kept
    total = weight.sum(1, keepdim=True)
    out = torch.where(kept, ((2 * TOTAL * weight + total) // (2 * total)).clamp_min(1), 0)
    largest = out.argmax(1)  # the first of equals
    out[torch.arange(len(out)), largest] += TOTAL - out.sum(1)
    return out.int()


@dataclass(frozen=True)
class RansTables:
    """K tables over A symbols, value v in place v + span, the escape last.

    frequency: int32 `[K, A]`. What coders read is derived from it once a device (`on`).
    """

    frequency: Tensor

    def __post_init__(self) -> None:
        f = self.frequency
        if f.dtype != torch.int32 or f.dim() != 2 or not 2 <= f.shape[1] <= MAX_ALPHABET or f.shape[1] % 2:
            raise ValueError(f"frequencies must be int32 [K, A] with an even A of at most {MAX_ALPHABET}")
        if not len(f) or bool((f < 0).any()) or bool((f.sum(1) != TOTAL).any()) or bool((f[:, -1] < 1).any()):
            raise ValueError(f"rows of frequencies must sum to {TOTAL} and let the escape occur")

    @classmethod
    def of(cls, probabilities: Tensor) -> RansTables:
        """Tables rounded by this module's rule from float32 `[K, A]`."""
        return cls(frequencies(probabilities))

    @property
    def count(self) -> int:
        """K."""
        return self.frequency.shape[0]

    @property
    def alphabet(self) -> int:
        """A, the escape included."""
        return self.frequency.shape[1]

    @property
    def span(self) -> int:
        """Values −span … span are in the alphabet."""
        return (self.alphabet - 2) // 2

    @cached_property
    def start(self) -> Tensor:
        """Int32 `[K, A]`: first slot of each symbol."""
        return (self.frequency.cumsum(1) - self.frequency).int()

    @cached_property
    def symbol_of_slot(self) -> Tensor:
        """Int64 `[K, 1024]`."""
        symbols = torch.arange(self.alphabet)
        return torch.stack([symbols.repeat_interleave(row.long()) for row in self.frequency])

    @cached_property
    def slots(self) -> Tensor:
        """Int32 `[K, 1024]`: frequency << 15 | (slot − first slot) << 5 | symbol; one look-up decodes a symbol."""
        symbol = self.symbol_of_slot
        inside = torch.arange(TOTAL) - self.start.long().gather(1, symbol)
        return (
            self.frequency.long().gather(1, symbol) << SYMBOL_BITS + PRECISION | inside << SYMBOL_BITS | symbol
        ).int()

    @cached_property
    def symbols(self) -> Tensor:
        """Int32 `[K, 32]`: frequency << 16 | first slot; zero where a value has to escape. What encoding reads."""
        packed = self.frequency.long() << 16 | torch.where(self.frequency > 0, self.start, 0).long()
        out = torch.zeros(self.count, MAX_ALPHABET, dtype=torch.int32)
        out[:, : self.alphabet] = packed.int()
        return out

    @cached_property
    def symbol_of_value(self) -> Tensor:
        """Int64 `[K, 64]`: the symbol that codes each value, clipped to −32 … 31; the escape for values without one."""
        symbol = torch.arange(VALUES) - VALUES // 2 + self.span
        escape = self.alphabet - 1
        symbol = torch.where((symbol < 0) | (symbol >= escape), escape, symbol)
        return torch.where(self.frequency[:, symbol] > 0, symbol, escape)

    @cached_property
    def cost(self) -> Tensor:
        """Int64 `[K, A]`: bits of each symbol in sixteenths, rounded up, by integers alone; 0 where there is none."""
        lengths = [0] + [FRACTION * PRECISION + 1 - (f**FRACTION).bit_length() for f in range(1, TOTAL + 1)]
        return torch.tensor(lengths)[self.frequency.long()]

    @cached_property
    def entropy(self) -> Tensor:
        """Int64 `[K]`: mean bits a symbol in sixteenths, times 1,024."""
        return (self.frequency * self.cost).sum(1)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(`slots`, `symbols`) on a device; kept."""
        cache = self.__dict__.setdefault("_devices", {})
        key = str(device)
        if key not in cache:
            cache[key] = (self.slots.to(device), self.symbols.to(device))
        return cache[key]
