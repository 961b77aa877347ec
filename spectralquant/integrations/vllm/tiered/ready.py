"""Everything that a codec does for the first time, done before the first request: kernels compiled, libraries loaded, memory
reserved. On a GPU the first restored prefix took several times as long as a later one without it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from spectralquant.integrations.archive import ChunkArchive
from spectralquant.integrations.vllm.pages import RowLayout
from spectralquant.integrations.vllm.tiered.rows import HostRows
from spectralquant.streams import reserve_pinned

LEAST_RATIO = 8  # packets of a lower one take pinned memory anew
log = logging.getLogger(__name__)
Workers = tuple[ThreadPoolExecutor, int, int]  # a pool, its threads, and how many chunks one of them codes at once


def make_ready(
    archive: ChunkArchive,
    layout: RowLayout,
    rows: HostRows,
    storing: Workers,
    loading: Workers,
    stream: Callable[[], torch.cuda.Stream | None],
) -> None:
    """Code made-up chunks in every thread that will code real ones, as many at once, on its own stream.

    Nothing is stored. Where it fails the engine is as it was, and its first requests take longer.
    """
    begin = time.perf_counter()
    many, more = storing[2], loading[2]
    packets: list[bytes] = []

    def encode() -> None:
        with rows.working(stream()):
            chunks = archive.codec.sample(many + 1, archive.tokens, archive.shape)
            if chunks:
                held = layout.write(chunks, rows.device)
                read = layout.read(held, [chunk.start for chunk in chunks])
                coded = archive.codec.encode(read[:many]) + archive.codec.encode(read[many:])
                packets[:] = coded

    def decode() -> None:
        first, last = packets[:-1], packets[-1:]
        for some in (last, last * more, (first * more)[:more], last * (more - 1)):
            with rows.working(stream()):
                layout.write(archive.codec.decode(some, archive.shape), rows.device)

    try:
        _in_every_thread(*storing[:2], encode)
        if packets:
            if rows.device.type == "cuda":
                chunk_bytes = archive.tokens * archive.shape.bytes_per_token
                reserve_pinned(loading[2] * chunk_bytes // LEAST_RATIO, loading[1])
            _in_every_thread(*loading[:2], decode)
            log.info("the codec was made ready in %.1f s", time.perf_counter() - begin)
    except Exception:
        log.exception("the codec could not be made ready; the first requests that restore chunks take longer")


def _in_every_thread(pool: ThreadPoolExecutor, threads: int, work: Callable[[], None]) -> None:
    """One after the other, so that compiling is done once."""
    everyone, turn = threading.Barrier(threads), threading.Lock()

    def own() -> None:
        everyone.wait(60)
        with turn:
            work()

    for future in [pool.submit(own) for _ in range(threads)]:
        future.result()
