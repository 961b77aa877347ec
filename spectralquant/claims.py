"""One run at a time on one output: a lock beside it, gone when the run ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from spectralquant.errors import InputError
from spectralquant.files import require_writable


@contextlib.contextmanager
def claimed(path: str | Path, option: str) -> Iterator[None]:
    """Hold `path` for this process. A process that dies lets go of it.

    Raises:
        InputError: another run holds it, or its folder cannot be written.
    """
    path = Path(path).expanduser()
    require_writable(path, option)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"Another run is writing {option} {path}. Wait for it, or choose another path; two runs would mix their results."
        ) from None
    except NotImplementedError:  # a file system without locks
        file.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{option} {path} cannot be locked: {error.strerror or error}. Choose another folder."
        ) from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()
