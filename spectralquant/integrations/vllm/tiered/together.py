"""Lookups that are answered together."""

from __future__ import annotations

import threading

ANSWERED_TOGETHER = 64


class Lookups:
    """Chunks that a request asked for in a step, `ANSWERED_TOGETHER` at most: none is a hit before all were read.

    vLLM loads in one job what was answered since its last step, and each decoding has its fixed price: chunks that come in one by
    one would be decoded a few at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._waiting = 0
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether the next chunk belongs to others."""
        return self._closed or self._count >= ANSWERED_TOGETHER

    @property
    def answered(self) -> bool:
        """Whether all were read, and none comes after them."""
        return self._closed and not self._waiting

    def close(self) -> None:
        """The step has ended."""
        self._closed = True

    def begin(self) -> None:
        """One more is being read."""
        with self._lock:
            self._count += 1
            self._waiting += 1

    def end(self) -> None:
        """One of them was read, or will not be."""
        with self._lock:
            self._waiting -= 1
