"""Packets: exact round trip, every corruption found, hostile headers harmless."""

import struct
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralquant.codec.packet import (
    CHECK,
    CODED,
    EXACT,
    HEADER,
    HEADER_SIZE,
    INDEX_ENTRY,
    MAGIC,
    PacketHeader,
    SpectralPacket,
    exact_section,
)
from spectralquant.errors import PacketError

SHAPE = (2, 1, 5, 4)


def small_packet(exact="float16"):
    torch.manual_seed(0)
    keys, values = torch.randn(SHAPE), torch.randn(SHAPE)
    header = PacketHeader(2, 1, 4, 14, 128, 4, exact, 1.0, bytes(range(16)))
    body = bytes(range(90, 130))
    sections = [
        (0, 5, EXACT, exact_section(keys, values, exact)),
        (5, 4, CODED, body),
        (9, 5, EXACT, exact_section(values, keys, exact)),
    ]
    return SpectralPacket.build(header, sections), keys, values, body


@pytest.mark.parametrize("exact, tolerance", [("float16", 2e-3), ("bfloat16", 2e-2), ("float32", 0), ("int8", 2e-2)])
def test_round_trip(exact, tolerance, tmp_path):
    packet, keys, values, body = small_packet(exact)
    packet.save(tmp_path / "p.sqkv")
    again = SpectralPacket.open(tmp_path / "p.sqkv")
    k, v = again.exact(again.sections[0])
    assert (k.float() - keys).abs().max() <= tolerance and (v.float() - values).abs().max() <= tolerance
    assert bytes(again.body(again.sections[1])) == body
    assert (
        again.header.tokens == 14 and again.coded_tokens == 4 and again.nbytes == (tmp_path / "p.sqkv").stat().st_size
    )


def read_all(data):
    packet = SpectralPacket(data)
    for section in packet.sections:
        packet.body(section)
    return packet


def test_every_single_byte_corruption_is_detected():
    data = bytes(small_packet()[0].data)
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= flip
            with pytest.raises(PacketError):
                read_all(bytes(damaged))


def test_every_truncation_and_a_tail_are_detected():
    data = bytes(small_packet()[0].data)
    for length in range(len(data)):
        with pytest.raises(PacketError):
            read_all(data[:length])
    with pytest.raises(PacketError, match="truncated or has a tail"):
        read_all(data + b"x")


def sealed(data, **changes):
    """A packet with header fields changed and all checksums made right again: what an attacker would send."""
    fields = list(HEADER.unpack_from(data))
    names = [
        "magic",
        "version",
        "layers",
        "kv_heads",
        "head_dim",
        "tokens",
        "block",
        "sinks",
        "dtype",
        "reserved",
        "count",
        "scale",
        "profile",
        "length",
        "crc",
    ]
    for name, value in changes.items():
        fields[names.index(name)] = value
    head = HEADER.pack(*fields)[: -CHECK.size]
    index = data[HEADER_SIZE : HEADER_SIZE + INDEX_ENTRY.size * min(fields[10], 1000)]
    head += CHECK.pack(zlib.crc32(index, zlib.crc32(head)))
    return head + CHECK.pack(zlib.crc32(head)) + data[HEADER_SIZE:]


HOSTILE = {
    "another version": ({"version": 4}, "format version 4"),
    "huge section count": ({"count": 2**32 - 1}, "contradicts its size"),
    "huge length": ({"length": 2**60}, "truncated"),
    "unknown dtype": ({"dtype": 9}, "contradicts its size"),
    "more tokens than sections": ({"tokens": 2**31}, "does not cover"),
    "blocks longer than a block": ({"block": 3}, "more than a block of 3"),
    "huge shape": ({"layers": 65535, "kv_heads": 65535}, "expected"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_give_a_clear_error(case):
    changes, message = HOSTILE[case]
    data = sealed(bytes(small_packet()[0].data), **changes)
    with pytest.raises(PacketError, match=message):
        packet = SpectralPacket(data)
        for section in packet.sections:
            if section.kind == EXACT:
                packet.exact(section)


def test_index_entries_must_be_consecutive():
    data = bytearray(small_packet()[0].data)
    offset = HEADER_SIZE + INDEX_ENTRY.size
    struct.pack_into("<Q", data, offset, struct.unpack_from("<Q", data, offset)[0] + 1)
    with pytest.raises(PacketError, match="consecutive"):
        SpectralPacket(sealed(bytes(data)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_fuzzed_bytes_raise_packet_errors_only(data):
    for candidate in (data, MAGIC + data):
        with pytest.raises(PacketError):
            read_all(candidate)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_fuzzed_headers_with_right_checksums_raise_packet_errors_only(data):
    packet = bytes(small_packet()[0].data)
    changes = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "layers": st.integers(0, 65535),
                "kv_heads": st.integers(0, 65535),
                "head_dim": st.integers(0, 65535),
                "tokens": st.integers(0, 2**32 - 1),
                "count": st.integers(0, 2**32 - 1),
                "dtype": st.integers(0, 255),
                "length": st.integers(0, 2**64 - 1),
                "sinks": st.integers(0, 65535),
            },
        )
    )
    try:
        opened = read_all(sealed(packet, **changes))
        for section in opened.sections:
            if section.kind == EXACT:
                opened.exact(section)
    except PacketError:
        pass


def test_missing_file_is_named(tmp_path):
    with pytest.raises(PacketError, match="There is no packet file"):
        SpectralPacket.open(tmp_path / "no.sqkv")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(PacketError, match="less than a packet's header"):
        SpectralPacket.open(tmp_path / "empty")
