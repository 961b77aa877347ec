"""`PacketStore`: packets under keys, within a budget of bytes on disk; the one used least recently goes first."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from spectralquant.errors import InputError
from spectralquant.integrations.store.folder import Entry, Folder, disk_bytes, touch
from spectralquant.integrations.store.record import opened, sealed
from spectralquant.integrations.store.tally import Counting, StoreTally

log = logging.getLogger(__name__)
LOCK = "evicting.lock"
KEEP_SHARE = 0.95
LOOK_AGAIN_SHARE = 0.02
WAIT_S = 10.0
POLL_S = 0.005


class PacketStore:
    """A folder that any number of processes and threads may use at once.

    What is wrong with a file, or with the disk, is a miss: once open, a store raises nothing. A file is verified whenever it
    is read. Files that fail are deleted.

    namespace: what two users must agree on to read each other's packets (model, codec, chunk length). Namespaces share the
        folder and its budget, and never each other's packets.
    budget: bytes on disk, of all namespaces. When they are spent, packets go until 95 % of it is left. A process looks at what
        others wrote whenever it has written 2 % of the budget itself, and waits with its next packet while another process looks.
    """

    def __init__(self, root: str | os.PathLike[str], namespace: str, budget: int) -> None:
        """Open or make the folder.

        Raises:
            InputError: it cannot be written, or the budget is not positive.
        """
        if budget <= 0:
            raise InputError(f"A store's budget is a positive number of bytes, not {budget}.")
        self.namespace = namespace
        self.budget = budget
        self._folder = Folder(Path(root))
        self._count = Counting()
        self._lock = threading.Lock()
        self._written = 0
        try:
            self._folder.root.mkdir(parents=True, exist_ok=True)
            probe = self._folder.root / f".writable.{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise InputError(f"The store {root} cannot be written: {error.strerror}. Choose another folder.") from error
        self._total = 0
        self._make_room()

    def __contains__(self, key: bytes) -> bool:
        """Whether there is a file for `key`, unverified; its packet counts as used."""
        path = self._path(key)
        if not path.exists():
            return False
        touch(path)
        return True

    def has(self, key: bytes) -> bool:
        """As `key in store`, but its packet does not count as used."""
        return self._path(key).exists()

    def lookup(self, key: bytes) -> bool:
        """Whether there is a whole packet for `key`: the file is read and verified."""
        return self.look(key) is not None

    def look(self, key: bytes) -> memoryview | None:
        """As `lookup`: the whole packet."""
        packet = self._read(key)
        self._count.add(lookups=1, hits=int(packet is not None))
        return packet

    def load(self, key: bytes) -> memoryview | None:
        """The packet of `key`, verified again, or None."""
        packet = self._read(key)
        self._count.add(loads=1, lost=int(packet is None), loaded_bytes=len(packet or b""))
        return packet

    def save(self, key: bytes, packet: bytes, raw_bytes: int) -> bool:
        """Keep a packet; False where it cannot be kept (the disk is full, or it is larger than the budget).

        Args:
            raw_bytes: bytes of the chunk as the engine holds it, for the tally's ratio.
        """
        data = sealed(key, self.namespace, packet, raw_bytes)
        if len(data) > self.budget * KEEP_SHARE:
            self._count.add(failed_saves=1)
            return False
        start = time.perf_counter()
        try:
            size = self._folder.write(self._path(key), data)
        except OSError as error:
            log.warning("a packet was not stored: %s", error)
            self._count.add(failed_saves=1, write_s=time.perf_counter() - start)
            return False
        self._count.add(saves=1, raw_bytes=raw_bytes, stored_bytes=size, write_s=time.perf_counter() - start)
        with self._lock:
            self._total += size
            self._written += size
            look_again = self._total > self.budget or self._written > LOOK_AGAIN_SHARE * self.budget
        if look_again:
            self._make_room()
        return True

    def discard(self, key: bytes) -> None:
        """Delete a packet that its codec could not decode; it counts as damaged."""
        self._count.add(damaged=1)
        with contextlib.suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def count(self, **amounts: float) -> None:
        """Add what a codec or an engine's adapter did to fields of this store's tally."""
        self._count.add(**amounts)

    @property
    def tally(self) -> StoreTally:
        """What this process did so far."""
        return self._count.read()

    def disk_usage(self) -> tuple[int, int]:
        """Packets in the folder and their bytes on disk, of all namespaces, counted now, while nobody makes room."""
        with contextlib.suppress(Timeout, OSError), self._alone():
            return _count(self._folder.entries())
        return _count(self._folder.entries())

    def _path(self, key: bytes) -> Path:
        return self._folder.path(self.namespace, key)

    def _read(self, key: bytes) -> memoryview | None:
        path = self._path(key)
        start = time.perf_counter()
        try:
            with open(path, "rb") as handle:
                if disk_bytes(os.fstat(handle.fileno())) > 2 * self.budget:
                    raise OSError("larger than the whole store")
                data = handle.read()
        except FileNotFoundError:
            return None
        except (OSError, MemoryError) as error:
            log.warning("%s cannot be read: %s", path, error)
            return None
        middle = time.perf_counter()
        packet = opened(data, key, self.namespace)
        self._count.add(read_s=middle - start, verify_s=time.perf_counter() - middle)
        if packet is None:
            log.warning("%s is damaged: deleted", path)
            self.discard(key)
            return None
        touch(path)
        return packet

    def _make_room(self) -> None:
        """Count the folder anew, and delete what was used least recently until it fits; one process at a time."""
        try:
            with self._alone():
                entries = self._folder.entries()
                _, total = _count(entries)
                if total > self.budget:
                    total -= self._evict(entries, total - KEEP_SHARE * self.budget)
                with self._lock:
                    self._total, self._written = total, 0
        except (Timeout, OSError) as error:  # it tries again with its next packet
            log.warning("no room was made in %s: %s", self._folder.root, error)

    def _alone(self) -> FileLock:
        """The right to count the folder and to delete from it."""
        return FileLock(self._folder.root / LOCK, timeout=WAIT_S, poll_interval=POLL_S)

    def _evict(self, entries: list[Entry], excess: float) -> int:
        freed = gone = 0
        for entry in sorted(entries, key=lambda e: e.used):
            if freed >= excess:
                break
            with contextlib.suppress(OSError):
                os.unlink(entry.path)
                freed += entry.size
                gone += 1
        self._count.add(evicted=gone)
        return freed


def _count(entries: list[Entry]) -> tuple[int, int]:
    """How many packets, and their bytes on disk."""
    return len(entries), sum(entry.size for entry in entries)
