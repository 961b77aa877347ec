"""Work that goes on beside an engine: chunks on their way into an archive, and chunks fetched out of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from spectralquant.integrations.archive import ChunkArchive
from spectralquant.integrations.chunks import Chunk

log = logging.getLogger(__name__)


class Storing:
    """Chunks that wait to be coded and written, up to a number of bytes; what is above is dropped and counted."""

    def __init__(self, archive: ChunkArchive, threads: int, most_bytes: int) -> None:
        self.archive = archive
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sq-store")
        self._most = most_bytes
        self._bytes = 0
        self._keys: set[bytes] = set()
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
        for key, chunk in zip(keys, chunks, strict=True):
            self._pool.submit(self._store, key, chunk, size / len(keys))

    def _store(self, key: bytes, chunk: Chunk, size: float) -> None:
        try:
            self.archive.put([key], [chunk])
        except Exception:
            log.exception("a chunk was not stored")
        finally:
            with self._lock:
                self._bytes -= int(size)
                self._keys.discard(key)

    def finish(self) -> None:
        """Wait until everything is written, and take no more."""
        self._pool.shutdown(wait=True)


@dataclass
class Fetch:
    """A chunk on its way out of the archive, and the requests that wait for it."""

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
        self._fetches: dict[bytes, Fetch] = {}

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
            fetch = self._fetches[key] = Fetch(self._pool.submit(self._fetch, key, start), set())
        fetch.requests.add(request)
        if not fetch.future.done():
            return None
        return fetch.future.result() is not None

    def _fetch(self, key: bytes, start: int) -> Chunk | None:
        try:
            if not self._archive.lookup(key):
                return None
            chunk = self._archive.get([key])[0]
        except Exception:
            log.exception("a chunk was not restored")
            return None
        if chunk is not None and chunk.start != start:
            self._archive.store.discard(key)
            return None
        return chunk

    def chunk(self, key: bytes) -> Chunk:
        """A chunk that `look` found ready for a request that is not done yet."""
        chunk = self._fetches[key].future.result()
        assert chunk is not None
        return chunk

    def done(self, request: str, keys: Sequence[bytes] | None = None) -> None:
        """A request needs its chunks (all, or those of `keys`) no longer."""
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
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._fetches.clear()
