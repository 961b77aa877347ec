"""Writing files so that nothing is ever half written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spectralquant.errors import InputError


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it over `target` on success, delete it on any failure.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    target = Path(target)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"Cannot write {target}: {reason}. Free some space or choose another folder; nothing was changed."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(target: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` atomically."""
    with atomic_path(target) as path:
        path.write_bytes(data)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 `text` atomically."""
    write_bytes(target, text.encode())


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically."""
    write_text(target, json.dumps(value, indent=2, allow_nan=False) + "\n")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
