"""`SpectralPacket`: a prompt's KV cache as self-describing bytes.

Header, index, sections. All integers little-endian.

======  =====  =======================================================================================
offset  size   field
======  =====  =======================================================================================
0       4      magic ``SQKV``
4       2      format version (2; version 1, whose coded sections are other blocks, is read too)
6       2      L, layers
8       2      Hk, key/value heads
10      2      D, head dimension
12      4      total tokens
16      4      block size in tokens, at most 1,024
20      2      sinks: leading tokens kept exact
22      1      dtype of exact sections: 0 float16, 1 bfloat16, 2 float32, 3 int8 with float16 scales
23      1      g, number of groups of layers; 0: one group of all layers
24      4      n, number of sections
28      4      step scale, float32: the calibrated base step was multiplied by it
32      16     profile id: first half of the SHA-256 of the profile's tensor file
48      8      length of the whole packet in bytes
56      4      CRC-32 of bytes 0…55, of the groups and of the index
60      4      CRC-32 of bytes 0…59
64      …      the groups, each a window u32 (tokens that a query reads at most, itself included; 0: all)
               and ⌈L/8⌉ bytes with a bit for each layer that belongs to it (layer 0 is the lowest bit of the first)
…       24·n   index, one entry a section, group after group, in token order:
               offset u64, length u32, first token u32, tokens u16, kind u8 (0 coded, 1 exact), group u8,
               CRC-32 u32
…       …      the sections, one after the other, without gaps, up to the end
======  =====  =======================================================================================

A group's sections begin with the oldest token that can still be read (or a few before) and go on to the last; without
groups there is one of all layers, from token 0. A coded section is a block of `codec.rans_block`, a raw one of
`codec.coded_block`, or one taken over from a packet of version 1. An exact section holds keys *after* RoPE, then values,
each `[L, Hk, T, D]` with the group's L layers; with int8 all codes come first and then all scales. Sections are found
through the index, so any token block is decoded alone, also from a memory map. Every byte is under a checksum. Nothing is
believed that the bytes there do not bear out: an exact section has the length that its tokens take, and whoever decodes
coded ones first asks the profile's tables how few bytes their tokens can take (`SpectralCodec.least_bytes`), so what a
reader allocates is bounded by the packet's own length.
"""

from __future__ import annotations

import math
import mmap
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.cold.coded_block import MAX_TOKENS
from spectralquant.codec.cold.complement.bounded_block import BOUNDED, way_of
from spectralquant.codec.exact import int8_decode, int8_encode
from spectralquant.errors import InputError, PacketError
from spectralquant.files import write_bytes
from spectralquant.geometry import LayerGroup
from spectralquant.streams import to_device

MAGIC = b"SQKV"
VERSION, WITH_BOUNDED = 2, 3  # the second where a block was coded to a bound
READABLE = (1, 2, 3)
HEADER = struct.Struct("<4sHHHHIIHBBIf16sQI")
CHECK = struct.Struct("<I")
HEADER_SIZE = HEADER.size + CHECK.size
GROUP_WINDOW = struct.Struct("<I")
INDEX_ENTRY = struct.Struct("<QIIHBBI")
CODED, EXACT = 0, 1
EXACT_TOKENS = 16_384
Sections = list[tuple[int, int, int, bytes]]
EXACT_DTYPES = ("float16", "bfloat16", "float32", "int8")


@dataclass(frozen=True)
class Section:
    """One entry of the index."""

    offset: int
    length: int
    start: int
    tokens: int
    kind: int
    crc: int
    group: int = 0


@dataclass(frozen=True)
class PacketHeader:
    """What a packet says about itself. groups: layers by how far back they read; empty: one group that reads all."""

    layers: int
    kv_heads: int
    head_dim: int
    tokens: int
    block: int
    sinks: int
    exact_dtype: str
    step_scale: float
    profile_id: bytes
    groups: tuple[LayerGroup, ...] = ()

    @property
    def all_groups(self) -> tuple[LayerGroup, ...]:
        """`groups`, or the one group of all layers."""
        return self.groups or (LayerGroup(tuple(range(self.layers)), None),)

    def fp16_bytes(self, tokens: int, group: int) -> int:
        """Bytes of `tokens` tokens of a group's layers in float16."""
        return 2 * 2 * tokens * len(self.all_groups[group].layers) * self.kv_heads * self.head_dim


class SpectralPacket:
    """A packet in memory or in a memory map; sections are checked when they are read."""

    def __init__(self, data: bytes | memoryview | mmap.mmap) -> None:
        """Parse header and index.

        Raises:
            PacketError: not a packet, another version, truncated, or damaged.
        """
        self.data = memoryview(data)
        self.header, self.sections = _parse(self.data)

    @classmethod
    def open(cls, path: str | Path) -> SpectralPacket:
        """Memory-map a packet file; nothing but header and index is read."""
        path = Path(path)
        if not path.is_file():
            raise PacketError(f"There is no packet file {path}. Check the path.")
        if path.stat().st_size < HEADER_SIZE:
            raise PacketError(f"{path} has {path.stat().st_size} bytes, less than a packet's header of {HEADER_SIZE}.")
        with path.open("rb") as handle:
            return cls(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))

    @classmethod
    def build(cls, header: PacketHeader, *groups: Sequence[tuple[int, int, int, bytes]]) -> SpectralPacket:
        """Assemble a packet from each group's (first token, tokens, kind, bytes), in token order."""
        table = b"".join(_group_bytes(group, header.layers) for group in header.groups)
        offset = HEADER_SIZE + len(table) + INDEX_ENTRY.size * sum(map(len, groups))
        entries, bodies = [], []
        for number, sections in enumerate(groups):
            for start, tokens, kind, body in sections:
                entries.append(INDEX_ENTRY.pack(offset, len(body), start, tokens, kind, number, zlib.crc32(body)))
                bodies.append(body)
                offset += len(body)
        index = table + b"".join(entries)
        head = HEADER.pack(
            MAGIC,
            WITH_BOUNDED if any(k == CODED and b[0] == BOUNDED for g in groups for _, _, k, b in g) else VERSION,
            header.layers,
            header.kv_heads,
            header.head_dim,
            header.tokens,
            header.block,
            header.sinks,
            EXACT_DTYPES.index(header.exact_dtype),
            len(header.groups),
            len(entries),
            header.step_scale,
            header.profile_id,
            offset,
            0,
        )[: -CHECK.size]
        head += CHECK.pack(zlib.crc32(index, zlib.crc32(head)))
        head += CHECK.pack(zlib.crc32(head))
        return cls(head + index + b"".join(bodies))

    def __bytes__(self) -> bytes:
        """The packet as it goes over a wire or into a file."""
        return bytes(self.data)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def nbytes(self) -> int:
        """All bytes of the packet."""
        return len(self.data)

    @property
    def coded_bytes(self) -> int:
        """Bytes that belong to coded tokens: their sections and index entries, and the header."""
        return HEADER_SIZE + sum(s.length + INDEX_ENTRY.size for s in self.sections if s.kind == CODED)

    @property
    def coded_tokens(self) -> int:
        """Coded tokens of the layers that read furthest back."""
        return sum(s.tokens for s in self.sections if s.kind == CODED and s.group == 0)

    @property
    def fp16_bytes(self) -> int:
        """Bytes in float16 of what transformers' own cache keeps of these tokens."""
        h = self.header
        return sum(h.fp16_bytes(group.held(h.tokens), i) for i, group in enumerate(h.all_groups))

    @property
    def coded_fp16_bytes(self) -> int:
        """Bytes in float16 of the coded tokens that can still be read."""
        h, total = self.header, 0
        for s in self.sections:
            oldest = h.all_groups[s.group].first_read(h.tokens)
            if s.kind == CODED and s.start + s.tokens > oldest:
                total += h.fp16_bytes(s.start + s.tokens - max(s.start, oldest), s.group)
        return total

    @property
    def ways(self) -> dict[str, int]:
        """How many coded blocks took which of `codec.cold.complement.bounded_block.WAYS`."""
        first = [self.data[s.offset : s.offset + s.length] for s in self.sections if s.kind == CODED]
        return dict(Counter(way_of(data) for data in first))

    def body(self, section: Section) -> memoryview:
        """The bytes of a section.

        Raises:
            PacketError: the checksum does not match.
        """
        body = self.unchecked(section)
        if zlib.crc32(body) != section.crc:
            raise PacketError(
                f"The section of tokens {section.start} to {section.start + section.tokens} is damaged (checksum). "
                "Fetch or make the packet again."
            )
        return body

    def unchecked(self, section: Section) -> memoryview:
        """The bytes of a section, whatever they are; `body` checks them."""
        return self.data[section.offset : section.offset + section.length]

    def exact(self, section: Section, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Keys (after RoPE) and values `[L, Hk, T, D]` (layers of its group) of an exact section, in the stored dtype
        (float32 for int8), on a device.

        Raises:
            PacketError: the checksum does not match.
        """
        h = self.header
        layers = len(h.all_groups[section.group].layers)
        shape = (2, layers, h.kv_heads, section.tokens, h.head_dim)
        body = self.body(section)
        whole = to_device([np.frombuffer(body, np.uint8)], torch.device(device))
        if h.exact_dtype == "int8":
            count = int(np.prod(shape))
            codes = whole[:count].view(torch.int8).view(shape)
            scales = whole[count:].view(torch.float16).view(*shape[:-1], 1)
            both = int8_decode(codes, scales)
        else:
            both = whole.view(getattr(torch, h.exact_dtype)).view(shape)
        return both[0], both[1]

    def save(self, path: str | Path) -> None:
        """Write the packet atomically."""
        write_bytes(path, bytes(self.data))


def packet_float(value: float, name: str = "step_scale") -> float:
    """`value` as a packet's header carries it: rounded to float32, so that what is written compares equal when read.

    Raises:
        InputError: not a positive float32.
    """
    rounded = float(np.float32(value))
    if not (math.isfinite(rounded) and rounded > 0):
        raise InputError(f"{name}={value!r} must be a positive number that float32 can hold.")
    return rounded


def exact_section(keys: Tensor, values: Tensor, exact_dtype: str) -> bytes:
    """Bytes of an exact section; keys (after RoPE) and values `[L, Hk, T, D]`."""
    both = torch.stack([keys, values]).cpu().contiguous()
    if exact_dtype == "int8":
        codes, scales = int8_encode(both)
        return codes.numpy().tobytes() + scales.numpy().tobytes()
    return both.to(getattr(torch, exact_dtype)).view(torch.uint8).numpy().tobytes()


def exact_sections(start: int, keys: Tensor, values: Tensor, exact_dtype: str) -> Sections:
    """Exact sections of keys (after RoPE) and values `[L, Hk, T, D]`, as many as a section's length asks for."""
    sections: Sections = []
    for at in range(0, keys.shape[2], EXACT_TOKENS):
        part = slice(at, at + EXACT_TOKENS)
        body = exact_section(keys[:, :, part], values[:, :, part], exact_dtype)
        sections.append((start + at, min(EXACT_TOKENS, keys.shape[2] - at), EXACT, body))
    return sections


def exact_length(header: PacketHeader, tokens: int, layers: int) -> int:
    """Bytes that an exact section of `tokens` tokens of `layers` layers must have."""
    vectors = 2 * layers * header.kv_heads * tokens
    per_vector = {"float32": 4 * header.head_dim, "int8": header.head_dim + 2}.get(
        header.exact_dtype, 2 * header.head_dim
    )
    return vectors * per_vector


def _parse(data: memoryview) -> tuple[PacketHeader, list[Section]]:
    if len(data) < HEADER_SIZE:
        raise PacketError(f"{len(data)} bytes are less than a packet's header of {HEADER_SIZE}; it is truncated.")
    if bytes(data[:4]) != MAGIC:
        raise PacketError("These bytes are not a SpectralQuant packet (wrong magic number).")
    if CHECK.unpack_from(data, HEADER.size)[0] != zlib.crc32(data[: HEADER.size]):
        raise PacketError("The packet's header is damaged (checksum). Fetch or make the packet again.")
    fields = HEADER.unpack_from(data)
    version, layers, kv_heads, head_dim, tokens, block, sinks, dtype, parts = fields[1:10]
    count, scale, profile, length, crc = fields[10:]
    if version not in READABLE:
        raise PacketError(
            f"The packet has format version {version}; this program reads versions {READABLE[0]} to {READABLE[-1]}. "
            "Use the program that wrote it, or pack the prompt again."
        )
    if length != len(data):
        raise PacketError(f"The packet announces {length} bytes but has {len(data)}; it is truncated or has a tail.")
    start = HEADER_SIZE + parts * _group_size(layers)
    end = start + count * INDEX_ENTRY.size
    if end > length or dtype >= len(EXACT_DTYPES):
        raise PacketError("The packet's header contradicts its size.")
    known = version > 1 or not parts
    if not (layers and kv_heads and head_dim and block and known) or not 0 < scale < math.inf or sinks > tokens:
        raise PacketError("The packet's header holds values that no packet has.")
    index = data[HEADER_SIZE:end]
    if zlib.crc32(index, zlib.crc32(data[: HEADER.size - CHECK.size])) != crc:
        raise PacketError("The packet's index is damaged (checksum). Fetch or make the packet again.")
    groups = _groups(data[HEADER_SIZE:start], layers) if parts else ()
    header = PacketHeader(layers, kv_heads, head_dim, tokens, block, sinks, EXACT_DTYPES[dtype], scale, profile, groups)
    sections, at = [], end
    for offset, size, first, covered, kind, group, checksum in INDEX_ENTRY.iter_unpack(data[start:end]):
        section = Section(offset, size, first, covered, kind, checksum, group)
        if section.offset != at or section.kind not in (CODED, EXACT) or section.group >= len(header.all_groups):
            raise PacketError("The packet's index does not describe consecutive sections.")
        if section.kind == CODED and section.tokens > min(block, MAX_TOKENS):
            raise PacketError(f"A coded section announces {section.tokens} tokens, more than a block of {block}.")
        layers_there = len(header.all_groups[section.group].layers)
        if section.kind == EXACT and section.length != exact_length(header, section.tokens, layers_there):
            raise PacketError(
                f"An exact section of {section.tokens} tokens has {section.length} bytes, expected "
                f"{exact_length(header, section.tokens, layers_there)}."
            )
        if not section.tokens or not section.length:
            raise PacketError("The packet's index holds an empty section, or one of an unknown form.")
        at += section.length
        sections.append(section)
    if at != length or sections != sorted(sections, key=lambda s: s.group):
        raise PacketError("The packet's index does not cover the packet.")
    for number, kind in enumerate(header.all_groups):
        of_group = [s for s in sections if s.group == number]
        token = of_group[0].start if of_group else 0
        if token > kind.first_read(tokens):
            raise PacketError("The packet lacks tokens that would be read next.")
        for section in of_group:
            if section.start != token:
                raise PacketError("The packet's index does not describe consecutive sections.")
            token += section.tokens
        if token != tokens:
            raise PacketError("The packet's index does not cover the packet.")
    return header, sections


def _group_size(layers: int) -> int:
    """Bytes of one group's entry."""
    return GROUP_WINDOW.size + -(-layers // 8)


def _group_bytes(group: LayerGroup, layers: int) -> bytes:
    mask = sum(1 << layer for layer in group.layers)
    return GROUP_WINDOW.pack(group.window or 0) + mask.to_bytes(-(-layers // 8), "little")


def _groups(data: memoryview, layers: int) -> tuple[LayerGroup, ...]:
    """The groups of a packet, which together hold every layer once."""
    groups, size = [], _group_size(layers)
    for at in range(0, len(data), size):
        mask = int.from_bytes(data[at + GROUP_WINDOW.size : at + size], "little")
        window = GROUP_WINDOW.unpack_from(data, at)[0]
        groups.append(LayerGroup(tuple(i for i in range(mask.bit_length()) if mask >> i & 1), window or None))
    if sorted(i for group in groups for i in group.layers) != list(range(layers)):
        raise PacketError("The packet's groups do not hold every layer once.")
    return tuple(groups)
