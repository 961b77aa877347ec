"""What a process did with a store: counts, bytes and seconds."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class StoreTally:
    """Of one process since it opened the store; bytes are those on disk unless said otherwise.

    A lookup that finds a whole packet is a hit. A load reads and verifies the packet again; `lost` counts packets that were
    whole at lookup and not at load. `damaged` files were deleted. `raw_bytes` are the stored chunks as the engine holds them.

    Seconds of threads, which work side by side: `read_s` files, `verify_s` their digests, `write_s`, `encode_s`, `decode_s`
    (in `decodings` batches), `copy_s` of what was decoded to where the engine takes it. Seconds on the clock, summed over
    `restores` (requests that got chunks), each since the request's first lookup: until its chunks were read (`read_after_s`),
    decoded (`decoded_after_s`), copied (`copied_after_s`) and the engine asked for them (`taken_after_s`).
    """

    lookups: int = 0
    hits: int = 0
    loads: int = 0
    lost: int = 0
    damaged: int = 0
    saves: int = 0
    failed_saves: int = 0
    evicted: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    loaded_bytes: int = 0
    read_s: float = 0.0
    write_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    verify_s: float = 0.0
    copy_s: float = 0.0
    decodings: int = 0
    restores: int = 0
    read_after_s: float = 0.0
    decoded_after_s: float = 0.0
    copied_after_s: float = 0.0
    taken_after_s: float = 0.0

    @property
    def hit_share(self) -> float | None:
        """Hits by lookups, or None before the first lookup."""
        return self.hits / self.lookups if self.lookups else None

    @property
    def ratio(self) -> float | None:
        """Bytes of the chunks in the engine's cache by their bytes on disk, or None before the first save."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else None


class Counting:
    """A tally that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._amounts = dataclasses.asdict(StoreTally())
        self._tally: StoreTally | None = StoreTally()

    def add(self, **amounts: float) -> None:
        """Add to the named fields."""
        with self._lock:
            for name, amount in amounts.items():
                self._amounts[name] += amount
            self._tally = None

    def read(self) -> StoreTally:
        """The sums so far; the very same object where nothing was added."""
        with self._lock:
            if self._tally is None:
                self._tally = StoreTally(**self._amounts)
            return self._tally
