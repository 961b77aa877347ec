"""Bytes of a block that was coded to a bound on its error.

======  ======  ==================================================================
offset  size    field (little-endian)
======  ======  ==================================================================
0       1       mode: 6
1       1       stage: what follows the first stage: 0 nothing, 1 complement, 2 TurboQuant of the residual
2       2       T, number of tokens
4       4       n, bytes of the first stage
8       1       scale: int8, the first stage's steps are 2^(scale/8) times the calibrated ones
9       1       second: int8, the complement's steps are 2^(second/8) times those of the first stage; bits of TurboQuant
10      n       the first stage: a block of `codec.rans_block`
10+n    …       the second: see `codec.cold.complement.coder`, or `codec.cold.complement.turbo`
======  ======  ==================================================================

Whole half octaves of the scale are in the first stage's importance classes already; its steps take the rest (see
`octaves`). A block without a header of this kind is coded as it was calibrated, or raw.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from spectralquant.codec.cold import coded_block, rans_block
from spectralquant.errors import PacketError

BOUNDED = 6
HEADER = struct.Struct("<BBHIbb")
ALONE, COMPLEMENT, TURBO = 0, 1, 2
EIGHTHS = 8
CLASS_EIGHTHS = 4
WAYS = ("as calibrated", "finer", "complement", "turboquant", "raw")


@dataclass(frozen=True)
class BoundedParts:
    """A bounded block taken apart."""

    stage: int
    tokens: int
    scale: int
    second: int
    first: memoryview
    rest: memoryview


def octaves(scale: int) -> tuple[int, float]:
    """(classes by which a scale moves tokens, what their steps are multiplied by beyond that)."""
    moved = (scale + CLASS_EIGHTHS // 2) // CLASS_EIGHTHS
    return moved, 2.0 ** ((scale - CLASS_EIGHTHS * moved) / EIGHTHS)


def join(stage: int, tokens: int, scale: int, second: int, first: bytes, rest: bytes = b"") -> bytes:
    """Serialize a block."""
    return HEADER.pack(BOUNDED, stage, tokens, len(first), scale, second) + first + rest


def split(data: bytes | memoryview) -> BoundedParts:
    """Inverse of `join`.

    Raises:
        PacketError: numbers that contradict each other or the block's size.
    """
    data = memoryview(data)
    if len(data) < HEADER.size:
        raise PacketError(f"A block of {len(data)} bytes is shorter than its header of {HEADER.size}.")
    _, stage, tokens, length, scale, second = HEADER.unpack_from(data)
    end = HEADER.size + length
    first = data[HEADER.size : end]
    if stage not in (ALONE, COMPLEMENT, TURBO) or end > len(data) or (stage == ALONE and end != len(data)):
        raise PacketError("A bounded block has an unknown stage or contradicts its size.")
    if not len(first) or first[0] not in rans_block.MODES or coded_block.announced_tokens(first) != tokens:
        raise PacketError("A bounded block's first stage is no coded block of as many tokens.")
    return BoundedParts(stage, tokens, scale, second, first, data[end:])


def way_of(data: bytes | memoryview) -> str:
    """Which of `WAYS` a cold block took, from its first bytes."""
    if data[0] in coded_block.RAW_DTYPES:
        return "raw"
    if data[0] != BOUNDED:
        return "as calibrated"
    return {COMPLEMENT: "complement", TURBO: "turboquant"}.get(data[1], "finer")
