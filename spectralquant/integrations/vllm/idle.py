"""Time that an engine with nothing to compute gives to what its requests wait for.

vLLM's scheduler asks again, step by step, while a prefix is on its way. With nothing scheduled a step is Python alone, which
holds Python's lock; reading and decoding are many short calls, and each gets the lock back only after five milliseconds: up to
fifty times slower than alone. Steps that compute leave the lock by themselves, and wait for nothing here.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import Any

PAUSE = 0.01  # seconds; a request that arrives meanwhile waits no longer than that


class Awaited:
    """Work that requests wait for, of all engines in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: set[Future[Any]] = set()

    def add(self, future: Future[Any]) -> None:
        """Until it is done."""
        with self._lock:
            self._futures.add(future)
        future.add_done_callback(self._done)

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._futures.discard(future)

    def give_time(self, seconds: float = PAUSE) -> None:
        """Sleep until all of it is done, `seconds` at most."""
        with self._lock:
            futures = list(self._futures)
        if futures:
            wait(futures, seconds)

    def __len__(self) -> int:
        return len(self._futures)


AWAITED = Awaited()
