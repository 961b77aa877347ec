"""Work that goes on beside an engine: chunks on their way into an archive, and chunks fetched out of it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from spectralquant.integrations.archive import ChunkArchive
from spectralquant.integrations.chunks import Chunk
from spectralquant.integrations.vllm.idle import AWAITED
from spectralquant.integrations.vllm.tiered.restores import Restores

log = logging.getLogger(__name__)
TOGETHER = 32


class Storing:
    """Chunks that wait to be coded and written, up to a number of bytes; what is above is dropped and counted."""

    def __init__(self, archive: ChunkArchive, threads: int, most_bytes: int) -> None:
        self.archive = archive
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sq-store")
        self._most = most_bytes
        self._bytes = 0
        self._keys: set[bytes] = set()
        self._queue: deque[tuple[bytes, Chunk]] = deque()
        self._lock = threading.Lock()
        self.dropped = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    @property
    def full(self) -> bool:
        """Whether no more chunks are taken now."""
        return self._bytes >= self._most

    def add(self, keys: Sequence[bytes], chunks: Sequence[Chunk]) -> None:
        """Take chunks whose tensors nobody changes any more."""
        size = sum(chunk.tokens for chunk in chunks) * self.archive.shape.bytes_per_token
        with self._lock:
            if self.full:
                self.dropped += len(keys)
                return
            self._bytes += size
            self._keys.update(keys)
            self._queue.extend(zip(keys, chunks, strict=True))
        self._pool.submit(self._store)

    def _store(self) -> None:
        """Code what waits, some chunks at once; another thread may take the rest."""
        while taken := self._take():
            try:
                self.archive.put(*map(list, zip(*taken, strict=True)))
            except Exception:
                log.exception("%d chunks were not stored", len(taken))
            finally:
                with self._lock:
                    self._bytes -= sum(chunk.tokens for _, chunk in taken) * self.archive.shape.bytes_per_token
                    self._keys.difference_update(key for key, _ in taken)

    def _take(self) -> list[tuple[bytes, Chunk]]:
        with self._lock:
            return [self._queue.popleft() for _ in range(min(TOGETHER, len(self._queue)))]

    def finish(self) -> None:
        """Wait until everything is written, and take no more."""
        self._pool.shutdown(wait=True)


@dataclass
class Fetch:
    """A chunk on its way out of the archive, the position of its first token, and the requests that wait for it."""

    start: int
    future: Future[Chunk | None]
    requests: set[str]


class Fetching:
    """Chunks read, verified and decoded before an engine is told that they are there.

    A chunk stays in memory from its lookup until every request that looked it up is done with it: nothing that happens to its
    file in between can harm. At most `most_bytes` of them; a lookup above that is a miss.
    """

    def __init__(self, archive: ChunkArchive, threads: int, most_bytes: int) -> None:
        self._archive = archive
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sq-fetch")
        self._most = most_bytes // max(1, archive.tokens * archive.shape.bytes_per_token)
        self._restores = Restores(archive.store)
        self._fetches: dict[bytes, Fetch] = {}
        self._wanted: deque[tuple[bytes, Fetch]] = deque()

    def look(self, key: bytes, request: str, start: int) -> bool | None:
        """True: the chunk is ready. False: it cannot be had. None: ask again.

        Args:
            start: position of its first token; a chunk of another is none.
        """
        fetch = self._fetches.get(key)
        if fetch is None:
            if key not in self._archive:
                return self._archive.lookup(key)  # counts the miss
            if len(self._fetches) >= self._most:
                return False
            fetch = self._fetches[key] = Fetch(start, Future(), {request})
            self._restores.asked(request)
            AWAITED.add(fetch.future)
            self._wanted.append((key, fetch))
            self._pool.submit(self._fetch)
        fetch.requests.add(request)
        if not fetch.future.done():
            return None
        return fetch.future.result() is not None

    def _fetch(self) -> None:
        """Read, verify and decode what is wanted, some chunks at once; another thread may take the rest."""
        while taken := self._take():
            chunks: list[Chunk | None] = [None] * len(taken)
            try:
                requests = set().union(*(fetch.requests for _, fetch in taken))
                whole = [i for i, (key, _) in enumerate(taken) if self._archive.lookup(key)]
                self._restores.mark(requests, "read")
                for i, chunk in zip(whole, self._archive.get([taken[i][0] for i in whole]), strict=True):
                    key, fetch = taken[i]
                    if chunk is not None and chunk.start != fetch.start:
                        self._archive.store.discard(key)
                    else:
                        chunks[i] = chunk
                if any(chunk is not None for chunk in chunks):
                    self._restores.mark(requests, "decoded")
                    self._restores.mark(requests, "copied")  # an engine's pages take it from here
            except Exception:
                log.exception("%d chunks were not restored", len(taken))
            for (_, fetch), chunk in zip(taken, chunks, strict=True):
                fetch.future.set_result(chunk)

    def _take(self) -> list[tuple[bytes, Fetch]]:
        taken = []
        with contextlib.suppress(IndexError):  # other threads take from the same end
            while len(taken) < TOGETHER:
                taken.append(self._wanted.popleft())
        return taken

    def take(self, keys: Sequence[bytes], request: str) -> list[Chunk]:
        """Chunks that `look` found ready for a request that is not done yet."""
        chunks = []
        for key in keys:
            chunk = self._fetches[key].future.result()
            assert chunk is not None
            chunks.append(chunk)
        self._restores.mark([request], "taken")
        return chunks

    def done(self, request: str, keys: Sequence[bytes] | None = None) -> None:
        """A request needs its chunks (all, or those of `keys`) no longer."""
        if keys is None:
            self._restores.done(request)
        for key in list(self._fetches) if keys is None else keys:
            fetch = self._fetches.get(key)
            if fetch is not None:
                fetch.requests.discard(request)
                if not fetch.requests and fetch.future.done():
                    del self._fetches[key]

    def __len__(self) -> int:
        return len(self._fetches)

    def finish(self) -> None:
        """Let go of everything."""
        self._wanted.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for fetch in self._fetches.values():
            fetch.future.cancel()  # nobody would end it any more
        self._fetches.clear()
