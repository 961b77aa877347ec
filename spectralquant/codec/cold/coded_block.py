"""Bytes of one coded block: raw ones, and coded ones of packets of format version 1 (version 2: `codec.rans_block`).

======  =====  ==================================================================
offset  size   field (little-endian)
======  =====  ==================================================================
0       1      mode: 0 spectral, 1 raw float16, 2 raw float32, 3 spectral with shifted tables
1       1      width of a token id in bytes: 0 (no ids), 2 or 4
2       2      T, number of tokens, at most 1,024 (which bounds the memory that decoding takes)
4       4      n, number of 32-bit words of entropy-coded symbols (modes 0, 3), else 0
8       4      e, number of escaped values (modes 0, 3), else 0
12      …      ids: the id before the block, then T ids (all ones: unknown); absent with width 0
…       4·n    words of the ANS coder
…       4·e    escaped symbols, int32
======  =====  ==================================================================

In the raw modes the ids are followed by keys (before RoPE) and values, each `[T, L, Hk, D]`. A block is stored raw
when it would not shrink, or when a coefficient is not finite or too large for the coder: float16 where that is exact
enough to be finite, else float32 (NaN and infinities come back as they were).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectralquant.errors import PacketError

SPECTRAL, RAW16, RAW32, ADAPTIVE = 0, 1, 2, 3
HEADER = struct.Struct("<BBHII")
TOKENS = struct.Struct("<H")
RAW_DTYPES: dict[int, np.dtype[Any]] = {RAW16: np.dtype("<f2"), RAW32: np.dtype("<f4")}
MAX_TOKENS = 1024


@dataclass(frozen=True)
class BlockParts:
    """A block taken apart; words and escapes, or raw numbers."""

    mode: int
    tokens: int
    previous_id: int
    ids: np.ndarray | None
    words: np.ndarray
    escapes: np.ndarray
    raw: np.ndarray | None


def join(parts: BlockParts) -> bytes:
    """Serialize a block of at most 1,024 tokens."""
    if parts.tokens > MAX_TOKENS:
        raise ValueError(f"a block of {parts.tokens} tokens is over {MAX_TOKENS}")
    ids, width = b"", 0
    if parts.ids is not None:
        width = 2 if int(parts.ids.max(initial=0)) < 0xFFFF and parts.previous_id < 0xFFFF else 4
        with_previous = np.concatenate([[parts.previous_id], parts.ids])
        ids = with_previous.astype(f"<u{width}", casting="unsafe").tobytes()
    head = HEADER.pack(parts.mode, width, parts.tokens, len(parts.words), len(parts.escapes))
    if parts.raw is not None:
        return head + ids + parts.raw.astype(RAW_DTYPES[parts.mode]).tobytes()
    return head + ids + parts.words.astype("<u4").tobytes() + parts.escapes.astype("<i4").tobytes()


def announced_tokens(data: bytes | memoryview) -> int:
    """T as a block of any mode announces it.

    Raises:
        PacketError: the block is shorter than that.
    """
    if len(data) < 4:
        raise PacketError(f"A block of {len(data)} bytes is shorter than its header.")
    return int(TOKENS.unpack_from(data, 2)[0])


def split(data: bytes | memoryview, scalars_per_token: int) -> BlockParts:
    """Parse a block of a model with `scalars_per_token` key and value numbers a token.

    Raises:
        PacketError: the lengths inside the block contradict its size.
    """
    if len(data) < HEADER.size:
        raise PacketError(f"A block of {len(data)} bytes is shorter than its header of {HEADER.size}.")
    mode, width, tokens, words, escapes = HEADER.unpack_from(data)
    if mode not in (SPECTRAL, RAW16, RAW32, ADAPTIVE) or width not in (0, 2, 4):
        raise PacketError(f"A block has the unknown mode {mode} or token id width {width}.")
    body = 4 * (words + escapes) if mode not in RAW_DTYPES else tokens * scalars_per_token * RAW_DTYPES[mode].itemsize
    id_bytes = width * (tokens + 1) if width else 0
    if HEADER.size + id_bytes + body != len(data):
        raise PacketError(f"A block announces {HEADER.size + id_bytes + body} bytes but has {len(data)}.")
    if tokens > MAX_TOKENS:
        raise PacketError(f"A block announces {tokens} tokens; blocks hold at most {MAX_TOKENS}.")
    ids, previous, at = None, -1, HEADER.size
    if width:
        both = np.frombuffer(data, f"<u{width}", tokens + 1, at).astype(np.int64)
        both = np.where(both == (1 << 8 * width) - 1, -1, both)
        previous, ids, at = int(both[0]), both[1:], at + id_bytes
    none = np.zeros(0, np.uint32)
    if mode in RAW_DTYPES:
        raw = np.frombuffer(data, RAW_DTYPES[mode], tokens * scalars_per_token, at)
        return BlockParts(mode, tokens, previous, ids, none, none.astype(np.int32), raw)
    coded = np.frombuffer(data, "<u4", words, at)
    return BlockParts(mode, tokens, previous, ids, coded, np.frombuffer(data, "<i4", escapes, at + 4 * words), None)
