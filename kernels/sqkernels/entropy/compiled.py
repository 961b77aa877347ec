"""C sources of this package as libraries: compiled once with the machine's C compiler, then kept in the user's cache.

Only what a CPU does far slower without it is written so, and each such file has a reference beside it that does the same:
where there is no compiler, or `SPECTRALQUANT_COMPILE=0` forbids one, that is used. What is kept is named by the source and
by what the CPU can do, so a home folder may serve several machines; its hash lies beside it, since loading a library that is
cut short ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import platformdirs

FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC")
SECONDS = 120
QUOTED = 300
USUAL = ("cc", "gcc", "clang")
SWITCH = "SPECTRALQUANT_COMPILE"
ON, OFF = ("", "1", "yes", "true", "on"), ("0", "no", "false", "off")


class NotCompiledError(RuntimeError):
    """There is no library, and why."""


@functools.cache
def library(source: Path) -> ctypes.CDLL | NotCompiledError:
    """The library of a C source, or why there is none."""
    value = os.environ.get(SWITCH, "")
    if (word := value.strip().lower()) in OFF:
        return NotCompiledError(f"{SWITCH}={value} forbids it")
    if word not in ON:
        return NotCompiledError(f"{SWITCH}={value} is neither on ({', '.join(ON[1:])}) nor off ({', '.join(OFF)})")
    if os.name != "posix":
        return NotCompiledError("only on Linux and macOS")
    try:
        return _library(source)
    except NotCompiledError as error:
        return error
    except OSError as error:
        return NotCompiledError(f"{type(error).__name__}: {error}")


def compiler_missing() -> str | None:
    """Why the compiler that `CC` names cannot be used (others are tried then), or None."""
    command = _words(os.environ.get("CC", ""))
    return None if not command or shutil.which(command[0]) else f"CC={shlex.join(command)} is not on the PATH"


def _library(source: Path) -> ctypes.CDLL:
    """The kept library where it is whole and can be loaded, else a new one."""
    able = _abilities()
    parts = [source.read_bytes(), platform.machine().encode(), able, *map(str.encode, FLAGS)]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    target = _folder() / f"{source.stem}-{key}.so"
    noted = target.with_suffix(".sha256")
    if target.is_file() and noted.is_file() and noted.read_text(errors="replace") == _sha256(target):
        with contextlib.suppress(OSError):  # such as of another machine's C library
            return ctypes.CDLL(str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        new = Path(folder) / target.name
        _compile(source, new, ["-march=native"] if able else [])
        new.with_suffix(".sha256").write_text(_sha256(new))
        os.replace(new, target)  # whole or not at all, whoever else compiles it now
        os.replace(new.with_suffix(".sha256"), noted)
    return ctypes.CDLL(str(target))


def _compile(source: Path, target: Path, native: list[str]) -> None:
    """By the first compiler that can: the one that CC names, else a usual one, and a warning why not the first."""
    given, reasons = _words(os.environ.get("CC", "")), []
    if (missing := compiler_missing()) is not None:
        reasons.append(missing)
    commands = [given] if given and missing is None else []
    paths = {str(Path(path).resolve()): [path] for path in map(shutil.which, USUAL) if path}
    for command in [*commands, *(c for c in paths.values() if c != given)]:
        why = _failure([*command, *FLAGS, *native, str(source), "-o", str(target)])
        if why is None:
            if given and command != given:
                warnings.warn(f"{'; '.join(reasons)}. {shlex.join(command)} compiled {source.name}.", stacklevel=2)
            return
        reasons.append(f"{shlex.join(command)} failed: {why}")
    if not paths:
        reasons.append(f"no C compiler ({', '.join(USUAL[:-1])} or {USUAL[-1]}) on the PATH")
    raise NotCompiledError("; ".join(reasons))


def _failure(command: list[str]) -> str | None:
    """Why a compiler failed, in its own words where it has some; None where it wrote a library."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"[:QUOTED]
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[:QUOTED]
        return said or f"exit status {done.returncode}, without a word"
    try:
        ctypes.CDLL(command[-1])
    except OSError as error:
        return f"exit status 0, but what it wrote is no library ({error})"[:QUOTED]
    return None


def _words(command: str) -> list[str]:
    """A command with its options, as CC="ccache gcc"."""
    try:
        return shlex.split(command)
    except ValueError:  # a quote that is not closed
        return [command]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _folder() -> Path:
    return Path(os.environ.get("SPECTRALQUANT_CACHE") or platformdirs.user_cache_dir("spectralquant")) / "compiled"


def _abilities() -> bytes:
    """The CPU's instruction sets as Linux lists them; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return b""
    return next((line for line in lines if line.lower().startswith((b"flags", b"features"))), b"")
