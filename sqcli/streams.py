"""Standard streams of the process. Standard library alone: this is loaded before anything else."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

BAD_INPUT = 2


class _PipeFile(io.FileIO):
    """A standard stream whose reader may go away (`sq show | head -1`): what is written then is dropped, and work goes on."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def tolerant_streams() -> None:
    """Let stdout and stderr outlive their readers, and show what their encoding lacks as escapes. Closed ones are replaced."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
            raw = _PipeFile(number, "wb", closefd=False)
            lines = stream.line_buffering or name == "stderr"
            wrapped = io.TextIOWrapper(
                io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=lines, write_through=lines
            )
            setattr(sys, name, wrapped)
            setattr(sys, f"__{name}__", wrapped)


def flush_streams(code: int) -> int:
    """Write what is buffered; the exit code becomes 2 where that fails (a full disk behind `> file`)."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            number = stream.fileno()
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            if number != 2 and error.errno != errno.EPIPE and not code:
                sys.stderr.write(f"sq: Cannot write to standard output: {error.strerror}.\n")
                code = BAD_INPUT
    return code
