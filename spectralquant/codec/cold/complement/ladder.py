"""The second stage's frequency tables: a ladder from "nearly always 0" to wide, the same in every profile.

Symbols of a band of components are 0 with probability p, else ±k with probabilities that fall by a constant factor. All
is made of integers, so that every machine has the same tables: nothing is calibrated, and a band of any text finds its
rung.
"""

from __future__ import annotations

import functools

import torch

from spectralquant.codec.cold.symbols import ALPHABET, SPAN
from sqkernels.entropy import RansTables
from sqkernels.entropy.tables import TOTAL

# Slots of 0 (of 1,024), and by how much the next larger symbol is rarer (of 256), rung by rung.
RUNGS = (
    (1019, 24),
    (1014, 28),
    (1006, 32),
    (995, 36),
    (980, 40),
    (960, 45),
    (935, 50),
    (905, 56),
    (870, 62),
    (830, 69),
    (785, 76),
    (735, 84),
    (680, 93),
    (620, 102),
    (560, 112),
    (500, 122),
    (440, 132),
    (380, 142),
    (325, 153),
    (275, 164),
    (230, 175),
    (190, 186),
    (155, 197),
    (125, 207),
    (100, 217),
    (80, 226),
    (60, 234),
    (45, 243),
)


@functools.cache
def ladder() -> RansTables:
    """Tables int32 `[K, 32]` of the rungs."""
    return RansTables(torch.tensor([_rung(zero, factor) for zero, factor in RUNGS], dtype=torch.int32))


def _rung(zero: int, factor: int) -> list[int]:
    """Frequencies of −15 … 15 and the escape; half of what 0 leaves goes to each sign, at least 1 to an escape."""
    weights = [factor**k * 256 ** (SPAN - k) for k in range(SPAN)]
    beyond = factor**SPAN * 256 // (256 - factor)
    side = (TOTAL - zero - 1) // 2
    whole = sum(weights) + beyond
    counts = [side * w // whole for w in weights]
    counts[0] += side - sum(counts) - side * beyond // whole
    escape = TOTAL - zero - 2 * sum(counts)
    row = [*reversed(counts), zero, *counts, escape]
    assert len(row) == ALPHABET and sum(row) == TOTAL
    return row
