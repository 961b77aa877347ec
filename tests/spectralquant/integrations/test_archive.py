"""A codec over a store: chunks by key, and a codec's refusal is a miss."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from spectralquant.errors import InputError
from spectralquant.integrations.archive import ChunkArchive
from spectralquant.integrations.chunks import Chunk, ChunkShape, LosslessChunks
from spectralquant.integrations.store import PacketStore

SHAPE = ChunkShape((2, 2), (8, 8), torch.bfloat16)
MB = 1 << 20


def chunk(start: int, tokens: int = 16) -> Chunk:
    draw = torch.Generator().manual_seed(start)
    sides = [[torch.randn(2, tokens, 8, generator=draw).bfloat16() for _ in range(2)] for _ in range(2)]
    return Chunk(start, *sides)


@pytest.fixture
def archive(tmp_path):
    codec = LosslessChunks()
    return ChunkArchive(PacketStore(tmp_path, codec.identity, MB), codec, SHAPE, tokens=16)


def test_chunks_come_back_by_key(archive):
    assert archive.put([b"a", b"b"], [chunk(0), chunk(16)]) == 2
    assert archive.lookup(b"a") and b"b" in archive and b"c" not in archive
    first, none, second = archive.get([b"b", b"c", b"a"])
    assert (first.start, none, second.start) == (16, None, 0)
    assert torch.equal(first.keys[1], chunk(16).keys[1])
    assert archive.tally.raw_bytes == 2 * 16 * SHAPE.bytes_per_token


def test_what_is_there_is_not_coded_again(archive):
    archive.put([b"a"], [chunk(0)])
    assert archive.put([b"a", b"b"], [chunk(0), chunk(16)]) == 2
    assert archive.tally.saves == 2


def test_a_packet_that_the_codec_refuses_costs_only_itself(archive):
    archive.put([b"a"], [chunk(0)])
    archive.store.save(b"b", b"a whole file, and no chunk", 1)
    long = LosslessChunks().encode([chunk(0, tokens=32)])[0]
    archive.store.save(b"c", long, 1)
    a, b, c = archive.get([b"a", b"b", b"c"])
    assert a is not None and b is None and c is None
    assert b"b" not in archive and b"c" not in archive and archive.tally.damaged == 2


def test_a_chunk_that_cannot_be_coded_is_not_stored(archive):
    broken = dataclasses.replace(chunk(0), keys=[None, None])
    assert archive.put([b"a"], [broken]) == 0
    assert b"a" not in archive


def test_a_length_that_the_codec_cannot_code_is_refused(tmp_path):
    codec = LosslessChunks()
    codec.granularity = 128
    with pytest.raises(InputError, match="multiple of 128 tokens"):
        ChunkArchive(PacketStore(tmp_path, "x", MB), codec, SHAPE, tokens=16)
