"""C sources of this package as libraries: compiled once with the machine's C compiler, then kept in the user's cache.

Only what a CPU does far slower without it is written so, and each such file has a reference beside it that does the same:
where there is no compiler, or `SPECTRALQUANT_COMPILE=0` forbids one, that is used. What is kept is named by the source and
by what the CPU can do, so a home folder may serve several machines.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs

FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC")
SECONDS = 120


class NotCompiledError(RuntimeError):
    """There is no library, and why."""


@functools.cache
def library(source: Path) -> ctypes.CDLL | NotCompiledError:
    """The library of a C source, or why there is none."""
    if os.environ.get("SPECTRALQUANT_COMPILE") == "0":
        return NotCompiledError("SPECTRALQUANT_COMPILE=0 forbids it")
    if os.name != "posix":
        return NotCompiledError("only on Linux and macOS")
    try:
        return ctypes.CDLL(str(_compiled(source)))
    except NotCompiledError as error:
        return error
    except (OSError, subprocess.SubprocessError) as error:
        return NotCompiledError(f"{type(error).__name__}: {error}")


def _compiled(source: Path) -> Path:
    text = source.read_bytes()
    able = _abilities()
    name = hashlib.sha256(b"\0".join([text, platform.machine().encode(), able, *map(str.encode, FLAGS)])).hexdigest()[
        :24
    ]
    target = _folder() / f"{source.stem}-{name}.so"
    if target.is_file():
        return target
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if compiler is None:
        raise NotCompiledError("no C compiler (cc, gcc or clang) on the PATH")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        native = ["-march=native"] if able else []
        command = [compiler, *FLAGS, *native, str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode:
            raise NotCompiledError(f"{compiler} failed: {done.stderr.strip()[:500]}")
        os.replace(made, target)  # whole or not at all, whoever else compiles it now
    return target


def _folder() -> Path:
    return Path(os.environ.get("SPECTRALQUANT_CACHE") or platformdirs.user_cache_dir("spectralquant")) / "compiled"


def _abilities() -> bytes:
    """The CPU's instruction sets as Linux lists them; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return b""
    return next((line for line in lines if line.lower().startswith((b"flags", b"features"))), b"")
