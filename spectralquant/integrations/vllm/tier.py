"""The tier behind vLLM's own tier in CPU memory: prefixes of all layers and ranks between its rows and a store.

Works with the interface of vLLM 0.26 (blocks, a job succeeds or fails whole, positions by `touch`) and with that of 0.32
(chunks, a job may succeed in part, positions in the request's context).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ReqContext, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from spectralquant.errors import InputError
from spectralquant.integrations.vllm.archives import open_archive, require_shared_hashes
from spectralquant.integrations.vllm.facts import current
from spectralquant.integrations.vllm.idle import AWAITED
from spectralquant.integrations.vllm.pages import RowLayout, layout_named
from spectralquant.integrations.vllm.settings import read_settings
from spectralquant.integrations.vllm.tiered.kept import KeptPackets
from spectralquant.integrations.vllm.tiered.metrics import Told, definitions
from spectralquant.integrations.vllm.tiered.ready import make_ready
from spectralquant.integrations.vllm.tiered.restores import Restores
from spectralquant.integrations.vllm.tiered.rows import HostRows
from spectralquant.integrations.vllm.tiered.together import Lookups

log = logging.getLogger(__name__)
AVOID_SECONDS = 60.0
STORED_TOGETHER, LOADED_TOGETHER = 16, 32  # chunks
LOADERS = 2  # one decodes while the other's chunks are on their way to vLLM
READERS = min(16, max(8, os.cpu_count() or 8))  # threads that read and verify, nearly all of it without Python's lock


@dataclass
class Loading:
    """A job of vLLM's: its number and request, how many of its chunks are still to come, and whether all did."""

    number: int
    request: str
    waiting: int
    success: bool = True


class SpectralTier(SecondaryTierManager):
    """A lookup reads and verifies. A load decodes what its lookup read; what was too much to keep is read and verified again. It
    fails softly.
    """

    def __init__(self, offloading_spec: Any, primary_kv_view: memoryview, tier_type: str, **options: Any) -> None:
        """vLLM builds it from `secondary_tiers: [{"type": "spectral"}]`; settings are in `"spectral"` beside that.

        Raises:
            InputError: this engine's prefixes cannot be stored; the message says what would help.
        """
        super().__init__(offloading_spec, primary_kv_view, tier_type, **options)
        require_shared_hashes()
        facts, settings = current(), read_settings(offloading_spec.extra_config)
        pages = offloading_spec.blocks_per_chunk
        self._tokens = facts.block * pages
        self._layout = RowLayout(
            layout_named(facts.layout),
            facts.order,
            facts.ranks,
            facts.kv_heads,
            facts.head_dim,
            facts.block,
            pages,
            facts.dtype,
        )
        self._rows = HostRows(primary_kv_view, settings.device)
        if self._rows.bytes < self._layout.bytes or offloading_spec.config.parallel.world_size != facts.ranks:
            raise InputError(
                f"A chunk of this model takes {self._layout.bytes} bytes and vLLM keeps {self._rows.bytes}: its pages are "
                "laid out in a way that cannot be stored."
            )
        self._archive = open_archive(settings, facts, self._tokens)
        self._storing = ThreadPoolExecutor(settings.threads, thread_name_prefix="sq-store")
        self._loaders = max(LOADERS, settings.threads)
        self._loading = ThreadPoolExecutor(self._loaders, thread_name_prefix="sq-load")
        self._reading = ThreadPoolExecutor(READERS, thread_name_prefix="sq-read")
        self._streams = threading.local()
        self._packets = KeptPackets(settings.ready)
        self._lock = threading.Lock()
        self._running: set[Future[None]] = set()
        self._results: list[tuple[str | None, JobResult]] = []
        self._lookups: dict[bytes, tuple[Future[bool], Lookups]] = {}
        self._together: dict[str, Lookups] = {}
        self._open: list[Lookups] = []
        self._restores = Restores(self._archive.store)
        self._told = Told(self._archive.tally)
        self._wanted: set[bytes] = set()
        self._wanted_rows: deque[tuple[Loading, bytes, int]] = deque()
        self._asked: dict[str, set[bytes]] = {}
        self._positions: dict[str, dict[bytes, int]] = {}
        self._avoided: dict[bytes, float] = {}
        make_ready(
            self._archive,
            self._layout,
            self._rows,
            (self._storing, settings.threads, STORED_TOGETHER),
            (self._loading, self._loaders, LOADED_TOGETHER),
            self._stream,
        )

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        if self._avoided and self._avoided.get(key, 0.0) > time.monotonic():
            return LookupResult.MISS
        request = req_context.req_id
        if key not in self._lookups:
            if not self._archive.has(key):
                self._archive.lookup(key)  # counts the miss
                return LookupResult.MISS
            self._lookups[key] = self._begin(key, request)
        answer, together = self._lookups[key]
        self._asked.setdefault(request, set()).add(key)
        if not answer.done() or not together.answered:
            return LookupResult.RETRY
        return LookupResult.HIT if answer.result() else LookupResult.MISS

    def _begin(self, key: bytes, request: str) -> tuple[Future[bool], Lookups]:
        together = self._together.get(request)
        if together is None or together.full:
            together = self._together[request] = Lookups()
            self._open.append(together)
        together.begin()
        self._restores.asked(request)
        self._wanted.add(key)
        answer = self._reading.submit(self._look, key, request)
        answer.add_done_callback(lambda _: together.end())
        AWAITED.add(answer)
        return answer, together

    def on_schedule_end(self, context: Any) -> None:
        for together in self._open:
            together.close()
        self._open = []

    def _look(self, key: bytes, request: str) -> bool:
        try:
            packet = self._archive.look(key)
        except Exception:  # a lookup's answer is read by the engine
            log.exception("a chunk could not be looked up")
            return False
        self._restores.mark([request], "read")
        if packet is not None:
            self._packets.keep(key, packet)
            if key not in self._wanted:  # given up meanwhile
                self._packets.take(key)
        return packet is not None

    def _forget(self, key: bytes) -> None:
        self._wanted.discard(key)
        self._lookups.pop(key, None)
        self._packets.take(key)

    def submit_store(self, job_metadata: Any) -> None:
        keys, rows = list(job_metadata.keys), _rows_of(job_metadata)
        starts = [self._start(key, job_metadata.req_context) for key in keys]
        chosen = [
            i
            for i, (key, start) in enumerate(zip(keys, starts, strict=True))
            if start is not None and key not in self._archive
        ]

        def work() -> None:
            success = True
            try:
                with self._rows.working(self._stream()):
                    for at in range(0, len(chosen), STORED_TOGETHER):
                        some = chosen[at : at + STORED_TOGETHER]
                        content = self._rows.read([rows[i] for i in some], self._layout.bytes)
                        chunks = self._layout.read(content, [starts[i] or 0 for i in some])
                        self._archive.put([keys[i] for i in some], chunks)
            except Exception:
                log.exception("%d chunks were not stored", len(chosen))
                success = False
            with self._lock:
                self._results.append((None, JobResult(job_id=job_metadata.job_id, success=success)))

        self._start_work(self._storing, work)

    def submit_load(self, job_metadata: Any, expedited: bool = False) -> None:
        keys, rows = list(job_metadata.keys), _rows_of(job_metadata)

        job = Loading(job_metadata.job_id, job_metadata.req_context.req_id, len(keys))
        if not keys:
            self._results.append((None, JobResult(job_id=job.number, success=True)))
        self._wanted_rows.extend((job, key, row) for key, row in zip(keys, rows, strict=True))
        for _ in range(min(self._loaders, -(-len(keys) // LOADED_TOGETHER))):
            AWAITED.add(self._start_work(self._loading, self._load))

    def _load(self) -> None:
        """Decode what is wanted, many chunks of any jobs at once; another thread may take the rest."""
        while taken := self._take():
            lost: set[bytes] = set()
            try:
                with self._rows.working(self._stream()):
                    lost = self._restore(taken)
            except Exception:
                log.exception("%d chunks were not restored", len(taken))
                lost = {key for _, key, _ in taken}
            with self._lock:
                self._avoided |= dict.fromkeys(lost, time.monotonic() + AVOID_SECONDS)
            self._restores.mark({job.request for job, _, _ in taken}, "copied")
            for job, key, _ in taken:
                self._forget(key)
                with self._lock:
                    job.success &= key not in lost
                    job.waiting -= 1
                    if not job.waiting:
                        self._results.append((job.request, JobResult(job_id=job.number, success=job.success)))

    def _take(self) -> list[tuple[Loading, bytes, int]]:
        with self._lock:
            return [self._wanted_rows.popleft() for _ in range(min(LOADED_TOGETHER, len(self._wanted_rows)))]

    def _restore(self, taken: list[tuple[Loading, bytes, int]]) -> set[bytes]:
        """Put chunks into vLLM's rows; keys of those that cannot be had."""
        keys = [key for _, key, _ in taken]
        chunks = self._archive.get(keys, {key: self._packets.take(key) for key in keys})
        there = [(row, chunk) for (_, _, row), chunk in zip(taken, chunks, strict=True) if chunk is not None]
        self._rows.finish_work()
        self._restores.mark({job.request for job, _, _ in taken}, "decoded")
        if there:
            begin = time.perf_counter()
            self._rows.write(
                [row for row, _ in there], self._layout.write([chunk for _, chunk in there], self._rows.device)
            )
            self._rows.finish_work()
            self._archive.store.count(copy_s=time.perf_counter() - begin)
        return {key for key, chunk in zip(keys, chunks, strict=True) if chunk is None}

    def _start_work(self, pool: ThreadPoolExecutor, work: Callable[[], None]) -> Future[None]:
        future = pool.submit(work)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def _stream(self) -> torch.cuda.Stream | None:
        """Of this thread."""
        if not hasattr(self._streams, "own"):
            self._streams.own = self._rows.stream()
        return self._streams.own

    def get_finished_jobs(self) -> Iterable[JobResult]:
        with self._lock:
            finished, self._results = self._results, []
        self._restores.mark({request for request, _ in finished if request is not None}, "taken")
        return [result for _, result in finished]

    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """vLLM names all chunks of a request in order; before 0.32 nothing else tells where one begins."""
        if not hasattr(req_context, "get_offload_key_position"):
            self._positions[req_context.req_id] = {key: i * self._tokens for i, key in enumerate(keys)}

    def _start(self, key: bytes, context: Any) -> int | None:
        if hasattr(context, "get_offload_key_position"):
            end = context.get_offload_key_position(key)
            return None if end is None or end % self._tokens else end - self._tokens
        return self._positions.get(context.req_id, {}).get(key)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._positions.pop(req_context.req_id, None)
        self._together.pop(req_context.req_id, None)
        self._restores.done(req_context.req_id)
        for key in self._asked.pop(req_context.req_id, ()):
            self._forget(key)
        now = time.monotonic()
        with self._lock:  # threads that load add to it
            self._avoided = {key: until for key, until in self._avoided.items() if until > now}

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:
        return definitions()

    def get_stats(self) -> Any:
        return self._told.news(self._archive.tally)

    def drain_jobs(self) -> None:
        wait(list(self._running))

    def shutdown(self) -> None:
        self._storing.shutdown(wait=True)
        self._loading.shutdown(wait=True)
        self._reading.shutdown(wait=True)
        self._rows.close()


def _rows_of(job: Any) -> list[int]:
    return [int(i) for i in (job.chunk_ids if hasattr(job, "chunk_ids") else job.block_ids)]
