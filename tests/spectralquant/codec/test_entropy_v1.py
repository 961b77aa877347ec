"""Packets of format version 1 stay readable."""

import contextlib
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles_for_tests import GEOMETRY, random_block, random_codec
from v1_for_tests import block_v1, encode_v1

from spectralquant.codec.cold.entropy_v1 import EntropyReaderV1
from spectralquant.codec.cold.symbols import SHIFTS, SPAN, groups
from spectralquant.codec.packet import CHECK, CODED, HEADER, HEADER_SIZE, PacketHeader, SpectralPacket
from spectralquant.errors import PacketError

RANKS = (40, 25)
# Written by the program that wrote version 1: classes 0 … 4 and their reverse; symbols (3i + 5t) % 7 − 3, and 99 at (2, 1).
WORDS = {
    False: "a60084825493b154915ce396f3a6137f5c76eff3c652f0d42c1c5dd207e61a9f639df09f5bc0fee994f3ff5999200046dcffff5ffbe9fe323d01000d9f5600d80c00003b39ca3bb10c0000153cd7ffabe1ffff15e1ffff5e0c0000eafe0f0036f30500e1cb08005c40ffffb231c55e1fae0590f4a92bae0c4f5d75fc737dae11f6596ffe001caf39a62adddbe005e767aa5dbd2afaffffa12599021ce78efc51a051e9416534ffe6ad4055a91dc3ffeb73d7ffe8a74eff425afcff40821400de5b000039f20000dca7ffff646da1a10b2791ff2a19000000b6320079e0ffffe8421b00bff3f02c3accf3ffca0c00000e0c000000ba0300a00d0000f29dfaff6729fdfffce1ffff6258a77e3cb06919b1a10e0000",
    True: "ddb0ebe6e3feffc0e1ffff7d80ffff1a8900005d3248019e022f002460d2ff53073000429d0300560c0000030d0000290d00002c0d0000146ce36e210c0000f2e0ffffc94102005e0c0000f93affff75e1ffff0db50000cee1ffffbc0d00000ce0ffff005306148e38ffffdb0d000083aba7e3efa3fdff8a0d0000ec5f5c059d8efdffb9e1ffff0d0c0000000d00003de0fffffd6329b33e0c00004e0d00002be1ffffffd9fdffc88601004463afa43e2f0000aec10801489bffff220d0000488685a3ca0d00000ce0ffff000c00001dceffffecb63b28ecb4feff270d00007e000100031816668543feffaa0d0000cc5c0100bd7f2b8c72f2d4f753fb581c3fd4cd009a4dd0ff99c952ffe4faccffe08d0100fd3f0000afac4ae9b710000067af359f47470000d90c00006070ffff238087ff5695220709e1ffffe8ba89ff70e1ffff6ccaffff653a0500c2d25eb952dfffffac0e0000f00c0000ffe1ffff7ce1ffffc28421b755e0ffff0d0c000000e1ffff0029feffd80d000052cd8e075723feff0a0d0000d3a60100f44beb4536b9feff280d0000e58faa5a8d62caab3e76feff818301003c718fdfd8f5df53970c00001fe0ffff0de1ffff000c000000e0ffff0ddafeff9b0d00008487020012e0ffffb4e1ffff0444000092e1ffff9e0c0000a4e0ffff0d6201008e0c000060cdffff4c9601009cfa01f43b20fdffa30d00002e800100c30d00008f0c0000825c85498d06feff01e0ffffce0c0000f918feffc1e0ffff0d200100030c0000714cffffe1e0ffff0d32feff8fe0ffff42ddfdff73e1ffff778f303b5d0d0000c42500002f0c00001243feff18e0ffff0dda02002255c464eef6c8122277850300",
}


def reader():
    rng = np.random.default_rng(0)
    scale = np.geomspace(0.1, 6, 60)
    rows = np.exp(-np.abs(np.arange(-SPAN, SPAN + 1))[None] / scale[:, None])
    rows = np.concatenate([rows, rows[:, :1] + 1e-6], axis=1)
    choice = tuple(rng.integers(0, 60, (9, r)).astype(np.uint8) for r in RANKS)
    return EntropyReaderV1(rows / rows.sum(1, keepdims=True), choice, np.full((2, 9), 1 / 9))


def example():
    tokens = np.arange(5)[:, None]
    symbols = [((3 * np.arange(r) + 5 * tokens) % 7 - 3).astype(np.int32) for r in RANKS]
    symbols[0][2, 1] = 99
    return symbols, np.stack([np.arange(5), np.arange(5)[::-1]], axis=1).astype(np.int32)


def shifts():
    return tuple((np.arange(groups(r)) % len(SHIFTS)).astype(np.int32) for r in RANKS)


@pytest.mark.parametrize("adaptive", [False, True])
def test_words_of_the_old_program(adaptive):
    symbols, classes = example()
    words = np.frombuffer(bytes.fromhex(WORDS[adaptive]), "<u4")
    found, back = reader().decode(words, np.array([99], np.int32), 5, adaptive_tables=adaptive)
    assert np.array_equal(back, classes)
    assert all(np.array_equal(a, b) for a, b in zip(symbols, found, strict=True))
    made, escapes = encode_v1(reader(), symbols, classes, shifts() if adaptive else None)
    assert np.array_equal(made, words) and escapes.tolist() == [99]


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_block_of_version_1_decodes_like_one_of_today(adaptive):
    codec = random_codec()
    block = random_block(3, 50, 1.0)
    run = codec.quantized([block])
    moved = tuple(np.full(groups(r), 7, np.int32) for r in codec.coder.ranks) if adaptive else None
    old = block_v1(codec, run.symbols.numpy(), run.classes.numpy(), shifts=moved)
    for a, b in zip(codec.decode(old), codec.decode(codec.encode(block)), strict=True):
        assert torch.equal(a, b)


def test_old_and_new_blocks_in_one_run():
    codec = random_codec()
    blocks = [random_block(seed, 50, 1.0) for seed in range(3)]
    new = codec.encode_run(blocks)
    run = codec.quantized([blocks[1]])
    old = block_v1(codec, run.symbols.numpy(), run.classes.numpy())
    mixed, plain = codec.coefficients_run([new[0], old, new[2]]), codec.coefficients_run(new)
    assert [c.tokens for c in mixed] == [c.tokens for c in plain] == [150]
    assert all(torch.equal(a, b) for a, b in zip(mixed[0].y, plain[0].y, strict=True))


def test_a_packet_that_says_version_1_is_read():
    codec = random_codec()
    block = random_block(3, 50, 1.0)
    run = codec.quantized([block])
    body = block_v1(codec, run.symbols.numpy(), run.classes.numpy())
    g = GEOMETRY
    header = PacketHeader(g.layers, g.kv_heads, g.head_dim, 50, 128, 0, "float16", 1.0, bytes(16))
    data = bytearray(bytes(SpectralPacket.build(header, [(0, 50, CODED, body)]).data))
    struct.pack_into("<H", data, 4, 1)
    head = data[: HEADER.size - CHECK.size]
    index = data[HEADER_SIZE : HEADER_SIZE + 24]
    CHECK.pack_into(data, HEADER.size - CHECK.size, zlib.crc32(index, zlib.crc32(head)))
    CHECK.pack_into(data, HEADER.size, zlib.crc32(data[: HEADER.size]))
    packet = SpectralPacket(bytes(data))
    assert torch.equal(codec.decode(packet.body(packet.sections[0]))[0], codec.decode(codec.encode(block))[0])


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.integers(1, 6), st.booleans())
def test_random_words_are_refused_or_decoded_never_worse(data, tokens, adaptive):
    words = np.frombuffer(data[: len(data) // 4 * 4], np.uint32)
    with contextlib.suppress(PacketError):
        reader().decode(words, np.zeros(0, np.int32), tokens, adaptive_tables=adaptive)
