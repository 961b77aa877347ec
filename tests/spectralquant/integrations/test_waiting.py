"""Work beside an engine: stored in the background, fetched before it is said to be there."""

from __future__ import annotations

import time

import pytest
import torch

from spectralquant.integrations.archive import ChunkArchive
from spectralquant.integrations.chunks import Chunk, ChunkShape, LosslessChunks
from spectralquant.integrations.store import PacketStore
from spectralquant.integrations.vllm.idle import AWAITED, PAUSE
from spectralquant.integrations.vllm.waiting import Fetching, Storing

SHAPE = ChunkShape((2,), (8,), torch.bfloat16)
TOKENS = 16
BYTES = TOKENS * SHAPE.bytes_per_token
MB = 1 << 20


def chunk(start: int) -> Chunk:
    draw = torch.Generator().manual_seed(start)
    return Chunk(start, *([torch.randn(2, TOKENS, 8, generator=draw).bfloat16()] for _ in range(2)))


@pytest.fixture
def archive(tmp_path):
    codec = LosslessChunks()
    return ChunkArchive(PacketStore(tmp_path, codec.identity, MB), codec, SHAPE, TOKENS)


def answered(fetching: Fetching, key: bytes, request: str, start: int) -> bool:
    end = time.monotonic() + 20
    while (answer := fetching.look(key, request, start)) is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    return answer


def test_chunks_are_stored_in_the_background(archive):
    storing = Storing(archive, threads=2, most_bytes=MB)
    keys = [bytes([i]) for i in range(80)]
    storing.add(keys, [chunk(i * TOKENS) for i in range(80)])
    storing.finish()
    assert all(key in archive and key not in storing for key in keys) and not storing.full and storing.dropped == 0


def test_what_is_above_the_limit_is_dropped_and_counted(archive):
    storing = Storing(archive, threads=1, most_bytes=1)
    storing.add([b"a"], [chunk(0)])
    storing.add([b"b", b"c"], [chunk(16), chunk(32)])
    storing.finish()
    assert b"a" in archive
    assert storing.dropped == 2 - (b"b" in archive) - (b"c" in archive)


def test_a_chunk_is_there_only_once_it_is_decoded_and_stays_until_its_requests_are_done(archive, tmp_path):
    archive.put([b"a", b"b"], [chunk(0), chunk(16)])
    fetching = Fetching(archive, threads=1, most_bytes=MB)
    assert answered(fetching, b"a", "one", 0) and answered(fetching, b"a", "two", 0)
    for path in tmp_path.rglob("*.sqchunk"):
        path.write_bytes(b"damaged after the lookup")
    assert torch.equal(fetching.take([b"a"], "one")[0].keys[0], chunk(0).keys[0])
    fetching.done("one")
    assert len(fetching) == 1
    tally = archive.tally
    assert tally.restores == 1 and 0 < tally.read_after_s <= tally.copied_after_s <= tally.taken_after_s
    fetching.done("two", [b"a"])
    assert len(fetching) == 0
    assert not answered(fetching, b"a", "three", 0) and not answered(fetching, b"b", "three", 16)


def test_a_chunk_of_another_position_is_none(archive):
    archive.put([b"a"], [chunk(32)])
    fetching = Fetching(archive, threads=1, most_bytes=MB)
    assert not answered(fetching, b"a", "one", 0)
    assert b"a" not in archive


def test_more_than_fits_is_a_miss(archive):
    archive.put([b"a", b"b"], [chunk(0), chunk(16)])
    fetching = Fetching(archive, threads=1, most_bytes=BYTES)
    assert answered(fetching, b"a", "one", 0) and not answered(fetching, b"b", "one", 16)
    fetching.done("one")
    assert answered(fetching, b"b", "two", 16)


def test_a_request_that_ends_while_its_chunk_is_read_leaves_nothing(archive):
    archive.put([b"a"], [chunk(0)])
    fetching = Fetching(archive, threads=1, most_bytes=MB)
    fetching.look(b"a", "one", 0)
    fetching.done("one")
    time.sleep(0.2)
    fetching.done("another")
    assert len(fetching) == 0


class ManyShortCalls(LosslessChunks):
    """Lets go of Python's lock as often as decoding does, which calls many small functions of numpy and torch."""

    def decode(self, packets, shape):
        for _ in range(200):
            time.sleep(0)
        return super().decode(packets, shape)


def test_a_scheduler_that_asks_without_end_does_not_starve_the_decoder(archive):
    archive.put([b"a"], [chunk(0)])
    archive.codec = ManyShortCalls()

    def seconds(pause: float) -> float:
        fetching = Fetching(archive, threads=1, most_bytes=MB)
        begin = time.monotonic()
        while (answer := fetching.look(b"a", "one", 0)) is None:
            if pause:
                AWAITED.give_time(pause)
        assert answer
        return time.monotonic() - begin

    assert seconds(PAUSE) < seconds(0.0) / 3


def test_an_idle_engine_waits_for_nothing_once_all_is_read_or_given_up(archive):
    archive.put([b"a"], [chunk(0)])
    fetching = Fetching(archive, threads=1, most_bytes=MB)
    assert answered(fetching, b"a", "one", 0)
    fetching._pool.submit(time.sleep, 0.2)
    archive.put([b"b"], [chunk(16)])
    fetching.look(b"b", "one", 16)
    fetching.finish()
    begin = time.monotonic()
    AWAITED.give_time(5)
    assert time.monotonic() - begin < 1 and len(AWAITED) == 0
