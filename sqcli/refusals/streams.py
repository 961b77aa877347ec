"""An output must not be the stream that tables and progress go to."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import TextIO

from spectralquant.errors import InputError


def require_own_stream(path: Path, option: str, json_option: str) -> None:
    """Refuse a name (`/dev/stdout`, `/dev/fd/2`) of the pipe that stdout or stderr is: the content would stand among other text there.

    Raises:
        InputError: names the option that writes to stdout alone.
    """
    for name, stream in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        if _same_pipe(path, stream):
            way = f"{json_option} - writes JSON alone to stdout" if option == json_option else "Name a file"
            raise InputError(
                f"{option} {path} is the pipe that this command's {name} goes to, with its tables and notes. {way}."
            )


def _same_pipe(path: Path, stream: TextIO | None) -> bool:
    with contextlib.suppress(OSError, ValueError):  # closed, or not there yet
        if stream is not None:
            own, other = os.fstat(stream.fileno()), os.stat(path)
            return stat.S_ISFIFO(other.st_mode) and os.path.samestat(own, other)
    return False
