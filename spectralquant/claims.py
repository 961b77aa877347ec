"""One run at a time on one output: a lock beside it, gone when the run ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from spectralquant.errors import BusyError, InputError
from spectralquant.files import is_stream, require_writable, user_path


@contextlib.contextmanager
def claimed(path: str | Path, option: str) -> Iterator[None]:
    """Hold `path` for this process. A process that dies lets go of it.

    Raises:
        BusyError: another run holds it. InputError: its folder cannot be written.
    """
    path = user_path(path)
    require_writable(path, option)
    if is_stream(path):  # several may write into it
        yield
        return
    real = Path(os.path.realpath(path))
    made = [folder for folder in real.parents if not folder.exists()]
    lock = FileLock(real.with_name(f".{real.name}.lock"))
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        with _held(lock, path, option):
            yield
    finally:
        with contextlib.suppress(OSError):  # something was written there
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def _held(lock: FileLock, path: Path, option: str) -> Iterator[None]:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(
            f"Another run is writing {option} {path}. Wait for it, or choose another path; two runs would mix their results."
        ) from None
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        raise InputError(
            f"{option} {path} cannot be locked: {error.strerror or error}. Choose another path."
        ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
