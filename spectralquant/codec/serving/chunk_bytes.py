"""Bytes of one chunk: exact tokens first, then blocks of the cold tier.

======  =====  ==================================================================
offset  size   field (little-endian)
======  =====  ==================================================================
0       4      ``SQC1``
4       1      element type of exact tokens: 1 bfloat16, 2 float16, 3 float32
5       1      0
6       2      n, number of blocks
8       4      position of the first token
12      4      T, number of tokens
16      4      x, how many of them, from the first on, are exact (sinks; all of them where coding would not pay)
20      4      s, bytes of the exact tokens
24      4·n    bytes of each block
…       s      exact keys (after RoPE) and values `[2, L, Hk, x, D]`: all first bytes of the numbers, then all second
               ones …, deflated
…       …      blocks (`codec.cold.rans_block` and its kin)
======  =====  ==================================================================

A chunk carries no checksum: what stores it has one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.errors import PacketError

MAGIC = b"SQC1"
HEADER = struct.Struct("<4sBBHIIII")
DTYPES = {1: torch.bfloat16, 2: torch.float16, 3: torch.float32}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MOST_TOKENS = 1 << 16


@dataclass(frozen=True)
class ChunkParts:
    """A chunk taken apart. exact: `[2, L, Hk, x, D]`."""

    start: int
    tokens: int
    exact: Tensor
    blocks: Sequence[memoryview | bytes]


def join(parts: ChunkParts) -> bytes:
    """Serialize a chunk."""
    planes = parts.exact.detach().cpu().contiguous().view(torch.uint8)
    planes = planes.view(-1, parts.exact.itemsize).T.contiguous()
    exact = zlib.compress(planes.numpy().tobytes(), 6) if planes.numel() else b""
    sizes = [len(b) for b in parts.blocks]
    head = HEADER.pack(
        MAGIC, CODES[parts.exact.dtype], 0, len(sizes), parts.start, parts.tokens, parts.exact.shape[3], len(exact)
    )
    return b"".join([head, struct.pack(f"<{len(sizes)}I", *sizes), exact, *parts.blocks])


def split(data: bytes | memoryview, layers: int, kv_heads: int, head_dim: int) -> ChunkParts:
    """Parse a chunk of a model of that shape.

    Raises:
        PacketError: it is no chunk, or its lengths contradict its size.
    """
    if len(data) < HEADER.size:
        raise PacketError(f"A chunk of {len(data)} bytes is shorter than its header of {HEADER.size}.")
    magic, code, zero, count, start, tokens, exact, size = HEADER.unpack_from(data)
    if magic != MAGIC or code not in DTYPES or zero:
        raise PacketError("The bytes are no chunk that this version reads.")
    at = HEADER.size + 4 * count
    if not 0 < tokens <= MOST_TOKENS or exact > tokens or len(data) < at + size or (count == 0) != (exact == tokens):
        raise PacketError(f"A chunk of {len(data)} bytes announces {tokens} tokens in {count} blocks: it is damaged.")
    sizes = struct.unpack_from(f"<{count}I", data, HEADER.size)
    if at + size + sum(sizes) != len(data):
        raise PacketError(f"A chunk announces {at + size + sum(sizes)} bytes but has {len(data)}.")
    view = memoryview(data)
    shape = (2, layers, kv_heads, exact, head_dim)
    numbers = _exact(view[at : at + size], shape, DTYPES[code])
    at += size
    blocks = []
    for length in sizes:
        blocks.append(view[at : at + length])
        at += length
    return ChunkParts(start, tokens, numbers, blocks)


def _exact(data: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count = 1
    for n in shape:
        count *= n
    want = count * dtype.itemsize
    if not want:
        if len(data):
            raise PacketError("A chunk without exact tokens holds bytes of some.")
        return torch.empty(shape, dtype=dtype)
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(data, want)
    except zlib.error as error:
        raise PacketError(f"The exact tokens of a chunk are damaged ({error}).") from error
    if len(plain) != want or not inflate.eof or inflate.unused_data:
        raise PacketError("The exact tokens of a chunk are not those of this model.")
    planes = torch.frombuffer(bytearray(plain), dtype=torch.uint8).view(dtype.itemsize, count)
    return planes.T.contiguous().view(dtype).view(shape)
