"""When the chunks of each request were read, decoded, copied and taken, told to a store's tally when the request is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, fields

from spectralquant.integrations.store import PacketStore


@dataclass
class Marks:
    """Seconds on the clock: of a request's first lookup, and of the last time that each thing happened to one of its chunks."""

    asked: float
    read: float = 0.0
    decoded: float = 0.0
    copied: float = 0.0
    taken: float = 0.0


class Restores:
    """Of requests that are not done yet. Any thread may tell; it costs microseconds."""

    def __init__(self, store: PacketStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._marks: dict[str, Marks] = {}

    def asked(self, request: str) -> None:
        """A lookup of a request, the first or a later one."""
        if request not in self._marks:
            with self._lock:
                self._marks.setdefault(request, Marks(time.perf_counter()))

    def mark(self, requests: Collection[str], what: str) -> None:
        """`read`, `decoded`, `copied` or `taken` happened to chunks of some requests, now."""
        now = time.perf_counter()
        with self._lock:
            for request in requests:
                if request in self._marks:
                    setattr(self._marks[request], what, now)

    def done(self, request: str) -> None:
        """Tell the tally, where chunks of this request came."""
        with self._lock:
            marks = self._marks.pop(request, None)
        if marks is not None and marks.copied:
            after = {f"{f.name}_after_s": max(0.0, getattr(marks, f.name) - marks.asked) for f in fields(Marks)[1:]}
            self._store.count(restores=1, **after)

    def __len__(self) -> int:
        return len(self._marks)
