"""Bytes of one coded block in packets of format version 2.

======  =====  ==================================================================
offset  size   field (little-endian)
======  =====  ==================================================================
0       1      mode: 4, or 5 with shifted tables
1       1      width of a token id in bytes: 0 (no ids), 2 or 4
2       2      T, number of tokens, at most 1,024
4       4      n, number of 16-bit words
8       4      e, number of escaped values
12      4      w, how many of them are wide
16      2      lanes of a run
18      2      C, runs of components
20      1      flags: 1 stream entries of 4 bytes instead of 2; 2 importance classes present; 4 all tokens unseen
21      1      reserved, 0
22      …      streams: words and escapes of each
…       …      classes of the keys of all tokens, then of the values: five a 16-bit word, as digits to base 9, first lowest
…       …      shifts (mode 5): a nibble for each group of 16 components, keys then values, padded to 2 bytes
…       4·N    states of the N lanes
…       2·n    words, stream after stream
…       …      side bytes that the lanes did not take
======  =====  ==================================================================

How symbols are dealt to lanes and streams, and how lanes code, is in `sqkernels.entropy`. **Side bytes** are the ids (the
id before the block, then T ids; all ones: unknown), then the escaped values in decoding order, one byte each (v as
2v or −2v − 1; 255: wide), then the wide ones (int32), then zeros. The first 2N of them are what the lanes hold when they
have decoded everything: 16 bits of a lane's first state would otherwise go to waste.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from spectralquant.codec.cold.coded_block import MAX_TOKENS
from spectralquant.codec.cold.symbols import groups
from spectralquant.errors import PacketError
from sqkernels.entropy import BlockShape

RANS, RANS_SHIFTED = 4, 5
MODES = (RANS, RANS_SHIFTED)
HEADER = struct.Struct("<BBHIIIHHBB")
LONG_STREAMS, WITH_CLASSES, ALL_UNSEEN = 1, 2, 4
CLASSES = 9
DIGITS = 5
WIDE = 255
POWERS = CLASSES ** np.arange(DIGITS)
DIGITS_OF = (np.arange(CLASSES**DIGITS)[:, None] // POWERS % CLASSES).astype(np.uint8)
U8, U16, U32 = np.dtype("u1"), np.dtype("<u2"), np.dtype("<u4")


@dataclass(frozen=True)
class RansParts:
    """A block taken apart. streams: int64 `[S, 2]`, words and escapes of each. packed: uint16, the classes (see `unpack_classes`), or None
    where all are alike: neutral, or `unseen`. shifts: uint8 indices `[groups of keys + groups of values]`, or None. states: uint32 `[N]`. words: uint16
    `[n]`. tail: the side bytes beyond 2N."""

    shape: BlockShape
    id_width: int
    streams: np.ndarray
    wide: int
    packed: np.ndarray | None
    shifts: np.ndarray | None
    states: np.ndarray
    words: np.ndarray
    tail: np.ndarray
    unseen: bool = False

    @cached_property
    def escapes(self) -> int:
        return int(self.streams[:, 1].sum())

    @property
    def id_bytes(self) -> int:
        return self.id_width * (self.shape.tokens + 1) if self.id_width else 0

    @property
    def side(self) -> int:
        """Side bytes that mean something; zeros follow up to 2N."""
        return self.id_bytes + self.escapes + 4 * self.wide


def join(p: RansParts) -> bytes:
    """Serialize a block."""
    long = bool(len(p.streams) and p.streams.max() > 0xFFFF)
    flags = LONG_STREAMS * long + WITH_CLASSES * (p.packed is not None) + ALL_UNSEEN * p.unseen
    head = HEADER.pack(
        RANS if p.shifts is None else RANS_SHIFTED,
        p.id_width,
        p.shape.tokens,
        len(p.words),
        p.escapes,
        p.wide,
        p.shape.lanes,
        p.shape.runs,
        flags,
        0,
    )
    parts = [head, p.streams.astype("<u4" if long else "<u2").tobytes()]
    if p.packed is not None:
        parts.append(p.packed.astype("<u2").tobytes())
    if p.shifts is not None:
        padded = np.pad(p.shifts.astype(np.uint8), (0, -len(p.shifts) % 4))
        parts.append((padded[0::2] | padded[1::2] << 4).tobytes())
    parts += [p.states.astype("<u4").tobytes(), p.words.astype("<u2").tobytes(), p.tail.tobytes()]
    return b"".join(parts)


def split(data: bytes | memoryview, ranks: tuple[int, int], shifts: int) -> RansParts:
    """Parse a block of a profile with `ranks` key and value components and `shifts` shifts to choose from.

    Raises:
        PacketError: the block's numbers contradict each other, its size or the profile.
    """
    if len(data) < HEADER.size:
        raise PacketError(f"A block of {len(data)} bytes is shorter than its header of {HEADER.size}.")
    mode, width, tokens, words, escapes, wide, lanes, runs, flags, _ = HEADER.unpack_from(data)
    rows = ranks[0] + ranks[1]
    if mode not in MODES or width not in (0, 2, 4) or flags > 7 or flags & 6 == 6:
        raise PacketError(f"A block has the unknown mode {mode}, token id width {width} or flags {flags}.")
    if tokens > MAX_TOKENS:
        raise PacketError(f"A block announces {tokens} tokens; blocks hold at most {MAX_TOKENS}.")
    shape = BlockShape(tokens, lanes, runs)
    try:
        shape.check(rows)
    except ValueError as error:
        raise PacketError(f"A block's layout is impossible: {error}.") from error
    entry = 4 if flags & LONG_STREAMS else 2
    sizes = [
        2 * entry * shape.streams,
        2 * -(-2 * tokens // DIGITS) if flags & WITH_CLASSES else 0,
        2 * -(-(groups(ranks[0]) + groups(ranks[1])) // 4) if mode == RANS_SHIFTED else 0,
        4 * shape.total_lanes,
        2 * words,
    ]
    side = (width * (tokens + 1) if width else 0) + escapes + 4 * wide
    sizes.append(max(0, side - 2 * shape.total_lanes))
    if HEADER.size + sum(sizes) != len(data):
        raise PacketError(f"A block announces {HEADER.size + sum(sizes)} bytes but has {len(data)}.")
    cuts = list(accumulate(sizes, initial=HEADER.size))

    def part(i: int, kind: np.dtype) -> np.ndarray:
        return np.frombuffer(data, kind, sizes[i] // kind.itemsize, cuts[i])

    streams = part(0, U32 if entry == 4 else U16).astype(np.int64).reshape(-1, 2)
    if streams.sum(0).tolist() != [words, escapes] or wide > escapes:
        raise PacketError("A block's streams do not add up to its words and escapes.")
    if escapes > rows * tokens:
        raise PacketError(f"A block announces {escapes} escaped values but has {rows * tokens} symbols.")
    return RansParts(
        shape,
        width,
        streams,
        wide,
        part(1, U16) if flags & WITH_CLASSES else None,
        _nibbles(part(2, U8), sum(groups(r) for r in ranks), shifts) if mode == RANS_SHIFTED else None,
        part(3, U32),
        part(4, U16),
        part(5, U8),
        bool(flags & ALL_UNSEEN),
    )


def pack_classes(classes: np.ndarray) -> np.ndarray:
    """Five classes a word, uint16 `[W]`, of `[2, T]`."""
    flat = classes.reshape(-1)
    digits = np.pad(flat.astype(np.int64), (0, -len(flat) % DIGITS)).reshape(-1, DIGITS)
    return (digits @ POWERS).astype(np.uint16)


def unpack_classes(words: np.ndarray, tokens: int) -> np.ndarray:
    """Classes uint8 `[B, 2, T]` of words `[B, W]` of blocks of T tokens; inverse of `pack_classes`.

    Raises:
        PacketError: a word that five digits cannot make.
    """
    if int(words.max(initial=0)) >= CLASSES**DIGITS:
        raise PacketError("A block names an importance class that does not exist.")
    digits: np.ndarray = DIGITS_OF[words].reshape(len(words), -1)
    return digits[:, : 2 * tokens].reshape(-1, 2, tokens)


def _nibbles(data: np.ndarray, count: int, limit: int) -> np.ndarray:
    both = np.stack([data & 15, data >> 4], axis=1).reshape(-1)
    if len(both) and int(both.max()) >= limit:
        raise PacketError("A block names a shift of tables that does not exist.")
    return both[:count]
