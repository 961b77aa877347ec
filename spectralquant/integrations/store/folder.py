"""The files of a store: where each key's file is, writing one whole or not at all, and what lies there.

A file is written to a temporary name and renamed. It is locked while it is written: a temporary file that can be locked is
one whose writer was killed, and whoever looks next removes it. Between making a file and locking it a writer looks dead, so
it checks, once it holds the lock, that its file is still there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SUFFIX = ".sqchunk"
TEMPORARY = ".tmp"
DISK_BLOCK = 512
_numbers = itertools.count()


@dataclass(frozen=True)
class Entry:
    """A packet's file: bytes it takes on disk, and when it was last written or read (nanoseconds)."""

    path: str
    size: int
    used: int


class Folder:
    """`root/NAMESPACE/XX/KEY.sqchunk`: XX are the key's first two digits."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, namespace: str, key: bytes) -> Path:
        """The file of a key."""
        name = hashlib.sha256(key).hexdigest()
        space = hashlib.sha256(namespace.encode()).hexdigest()[:16]
        return self.root / space / name[:2] / f"{name}{SUFFIX}"

    def write(self, path: Path, data: bytes) -> int:
        """Put a whole file in place; its bytes on disk. Raises OSError, and then leaves nothing behind."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.time_ns()}.{next(_numbers)}{TEMPORARY}")
        try:
            with _made_and_locked(temporary) as handle:
                handle.write(data)
                handle.flush()
                size = disk_bytes(os.fstat(handle.fileno()))
                os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        touch(path)
        return size

    def entries(self) -> list[Entry]:
        """All packets of all namespaces; removes temporary files that nobody writes any more."""
        return [
            Entry(item.path, disk_bytes(stat), stat.st_mtime_ns)
            for item in self._files()
            if item.name.endswith(SUFFIX) and (stat := _stat(item)) is not None
        ]

    def _files(self) -> Iterator[os.DirEntry[str]]:
        for space in _items(self.root):
            if space.is_dir(follow_symlinks=False):
                for part in _items(space.path):
                    for item in _items(part.path):
                        if item.name.endswith(TEMPORARY):
                            _remove_stale(item)
                        yield item


def _made_and_locked(path: Path) -> BinaryIO:
    """A new file that this process has locked. Raises OSError."""
    while True:
        handle = open(path, "xb")  # noqa: SIM115
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle.fileno()).st_nlink:
                return handle
        except BaseException:
            handle.close()
            raise
        handle.close()


def touch(path: str | os.PathLike[str]) -> None:
    """Mark a file as used now, to the nanosecond."""
    now = time.time_ns()
    with contextlib.suppress(OSError):
        os.utime(path, ns=(now, now))


def disk_bytes(stat: os.stat_result) -> int:
    """What a file takes on disk: whole blocks, where the file system counts them, else its length."""
    return max(stat.st_size, getattr(stat, "st_blocks", 0) * DISK_BLOCK)


def _items(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as listing:
            return list(listing)
    except OSError:  # removed meanwhile, or a file
        return []


def _stat(item: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return item.stat(follow_symlinks=False)
    except OSError:
        return None


def _remove_stale(item: os.DirEntry[str]) -> None:
    with contextlib.suppress(OSError), open(item.path, "rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(item.path)
