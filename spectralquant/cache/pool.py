"""`SpectralBufferPool`: preallocated pages for codes, shared by caches and threads.

Pages of one size live in slabs: of one page at first, then of as many as there are already, up to eight. A page is freed when the last `PageRef` to it goes; beams and copies share
pages because pages never change once written. Waste is bounded by one partly used slab a page size when pages are
freed in order, and is measured; `trim` gives empty slabs back.

A page that was freed may still be read by work that a GPU has not done yet. On one stream that is no harm: what is written
later is written later. For several streams (a worker's, a second cache's) the pool notes who has used it: a new page waits
for all of them, and slabs are not given back before they are done. Pinned host memory is written by the host itself, which
therefore waits too.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spectralquant.errors import InputError
from spectralquant.streams import StreamUsers

SLAB_PAGES = 8


@dataclass
class _PageClass:
    slabs: dict[int, Tensor] = field(default_factory=dict)
    free: set[tuple[int, int]] = field(default_factory=set)
    next_slab: int = 0


class PageRef:
    """A page that stays allocated as long as this object lives."""

    __slots__ = ("__weakref__", "index", "nbytes", "pool", "slab")

    def __init__(self, pool: SpectralBufferPool, nbytes: int, slab: int, index: int) -> None:
        self.pool, self.nbytes, self.slab, self.index = pool, nbytes, slab, index

    @property
    def data(self) -> Tensor:
        """The page, uint8 `[nbytes]` (a view; written once, by whoever allocated it)."""
        return self.pool.slab(self.nbytes, self.slab)[self.index]

    def __del__(self) -> None:
        self.pool._free(self.nbytes, self.slab, self.index)


@dataclass(frozen=True)
class PagePart:
    """Columns first … last of `rows` rows of `row_bytes` bytes that start at `offset` of a page."""

    offset: int
    rows: int
    row_bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class PoolStats:
    """Bytes. fragmentation: share of the allocated bytes that no live page uses."""

    allocated: int
    used: int
    pages: int

    @property
    def fragmentation(self) -> float:
        return 0.0 if not self.allocated else 1 - self.used / self.allocated


class SpectralBufferPool:
    """Thread-safe page allocator on one device. `max_bytes` bounds what it may allocate."""

    def __init__(
        self, device: torch.device | str = "cpu", *, max_bytes: int | None = None, pinned: bool = False
    ) -> None:
        self.device = torch.device(device)
        self.max_bytes = max_bytes
        self.pinned = pinned and self.device.type == "cpu" and torch.cuda.is_available()
        self._lock = threading.RLock()
        self._classes: dict[int, _PageClass] = {}
        self._returned: deque[tuple[int, int, int]] = deque()
        self._users = StreamUsers()

    def allocate(self, nbytes: int) -> PageRef:
        """A page of `nbytes` bytes.

        Raises:
            InputError: `max_bytes` would be exceeded.
        """
        with self._lock:
            self._take_back()
            self._wait_for_readers()
            pages = self._classes.setdefault(nbytes, _PageClass())
            if not pages.free:
                self._grow(nbytes, pages)
            slab, index = min(pages.free)
            pages.free.discard((slab, index))
        return PageRef(self, nbytes, slab, index)

    def _grow(self, nbytes: int, pages: _PageClass) -> None:
        count = min(SLAB_PAGES, max(1, sum(map(len, pages.slabs.values()))))
        wanted = nbytes * count
        if self.max_bytes is not None and self.stats().allocated + wanted > self.max_bytes:
            raise InputError(
                f"The buffer pool holds {self.stats().allocated:,} bytes and needs {wanted:,} more, over its limit of "
                f"{self.max_bytes:,}. Raise max_bytes, or free or demote older blocks."
            )
        with torch.inference_mode(False):
            slab = torch.zeros(count, nbytes, dtype=torch.uint8, device=self.device, pin_memory=self.pinned)
        if slab.is_cuda:
            for stream in self._users:
                slab.record_stream(stream)
        pages.slabs[pages.next_slab] = slab
        pages.free |= {(pages.next_slab, i) for i in range(count)}
        pages.next_slab += 1

    def slab(self, nbytes: int, slab: int) -> Tensor:
        """All pages of one slab, uint8 `[n, nbytes]`."""
        self.used_on(self.device)
        return self._classes[nbytes].slabs[slab]

    def used_on(self, device: torch.device) -> None:
        """Note that the current stream of a CUDA device is going to use pages."""
        if device.type != "cuda":
            return
        stream = torch.cuda.current_stream(device)
        if stream not in self._users:
            with self._lock:
                self._users.add(stream)
                for slab in (s for c in self._classes.values() for s in c.slabs.values()):
                    if slab.is_cuda:
                        slab.record_stream(stream)

    def _wait_for_readers(self) -> None:
        """Before a page is written (now, or by what comes next on the current stream)."""
        if self.device.type == "cuda":
            self.used_on(self.device)
            self._users.hold_back(torch.cuda.current_stream(self.device))
        else:
            self._users.finish()

    def gather(self, pages: list[PageRef], part: PagePart, device: torch.device) -> Tensor:
        """One part of many pages of one size, uint8 `[n, rows, columns]` on a device, in their order."""
        self.used_on(self.device if self.device.type == "cuda" else device)
        nbytes = pages[0].nbytes
        slabs = self._classes[nbytes].slabs
        runs: list[tuple[int, list[int]]] = []
        for page in pages:
            if not runs or runs[-1][0] != page.slab:
                runs.append((page.slab, []))
            runs[-1][1].append(page.index)
        runs_of_columns = []
        for slab, index in runs:
            start, consecutive = index[0], index == list(range(index[0], index[0] + len(index)))
            shape = (len(index) if consecutive else len(slabs[slab]), part.rows, part.last - part.first)
            at = part.offset + part.first + (start * nbytes if consecutive else 0)
            columns = slabs[slab].as_strided(shape, (nbytes, part.row_bytes, 1), at)
            runs_of_columns.append(columns if consecutive else columns[index])
        joined = runs_of_columns[0] if len(runs_of_columns) == 1 else torch.cat(runs_of_columns)
        return joined.to(device, non_blocking=True)

    def trim(self) -> int:
        """Give slabs without a live page back; returns the bytes freed."""
        freed = 0
        with self._lock:
            self._take_back()
            for nbytes, pages in self._classes.items():
                for slab in list(pages.slabs):
                    count = len(pages.slabs[slab])
                    every = {(slab, i) for i in range(count)}
                    if every <= pages.free:
                        pages.free -= every
                        del pages.slabs[slab]
                        freed += nbytes * count
        return freed

    def stats(self) -> PoolStats:
        """What is allocated and what is used."""
        with self._lock:
            self._take_back()
            allocated = sum(s.untyped_storage().nbytes() for c in self._classes.values() for s in c.slabs.values())
            live = {n: sum(map(len, c.slabs.values())) - len(c.free) for n, c in self._classes.items()}
            return PoolStats(allocated, sum(n * k for n, k in live.items()), sum(live.values()))

    def _free(self, nbytes: int, slab: int, index: int) -> None:
        # Called by the garbage collector, possibly while this thread holds the lock: only an atomic append.
        self._returned.append((nbytes, slab, index))

    def _take_back(self) -> None:
        while self._returned:
            nbytes, slab, index = self._returned.popleft()
            self._classes[nbytes].free.add((slab, index))
