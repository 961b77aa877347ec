"""Writing files so that nothing is ever half written, and reading JSON and TOML that may be anything."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs

from spectralquant.errors import InputError, SpectralQuantError


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it over `target` on success, delete it on any failure.

    A link is followed. Into a device or a pipe the content is written when it is whole, since nothing can be renamed over it.

    Raises:
        InputError: the folder cannot be written, the disk is full, or the target is no file.
    """
    target = Path(target)
    temporary = None
    try:
        streamed = is_stream(target)
        if not streamed:
            target = Path(os.path.realpath(target))
            target.parent.mkdir(parents=True, exist_ok=True)
        folder = None if streamed else target.parent
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=folder)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        if streamed:
            with temporary.open("rb") as whole, target.open("wb") as out:
                shutil.copyfileobj(whole, out)
            return
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"Cannot write {target}: {reason}. {_way_out(error)}; that file was not changed.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a device or a pipe (`/dev/null`, `/dev/stdout`, a shell's `>(…)`), which is written into, not replaced.

    Raises:
        OSError: links lead in a circle (ELOOP); or it is a disk, a socket, or a file under the name of an open stream (ENXIO).
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise OSError(errno.ENXIO, "it is a disk or a socket")
    if stat.S_ISREG(mode) and os.path.abspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/")):
        raise OSError(errno.ENXIO, "it is an open stream that leads to a file; that file's name would do")
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _way_out(error: OSError) -> str:
    """What helps where a file could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "Free some space or choose another folder"
    if error.errno == errno.EISDIR:
        return "Give the name of a file"
    return "Choose another path, or change its rights"


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a person writes it: `~` is the home folder, where there is such a home."""
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def require_writable(path: str | os.PathLike[str], option: str) -> None:
    """Refuse an output path before any work is done for it.

    Raises:
        InputError: a folder, in a folder that cannot be made or written, or with a name that no file can have.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{option} {path} is a folder. Give a file name.")
        if is_stream(path):  # raises where the name is too long, too
            if not os.access(path, os.W_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            return
        folder = _first_there(Path(os.path.realpath(path)).parent)
        if not folder.is_dir():
            raise InputError(f"{option} {path} cannot be written: {folder} is not a folder.")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{option} {path} cannot be written: {reason}. Choose another path.") from error


def _first_there(folder: Path) -> Path:
    """The folder, or the first above it that is there.

    Raises:
        OSError: links lead in a circle, or a folder on the way may not be looked into.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.stat(folder)
        return folder
    return _first_there(folder.parent)


def cache_folder() -> Path:
    """Where fetched models and unfinished runs live: `$SPECTRALQUANT_CACHE`, else the user cache folder of the platform."""
    return Path(os.environ.get("SPECTRALQUANT_CACHE") or platformdirs.user_cache_dir("spectralquant"))


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
    write_text(target, json_text(value))


def json_text(value: Any) -> str:
    """`value` as indented JSON with a final newline; NaN and infinities, which JSON lacks, become null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | os.PathLike[str], what: str, error: type[SpectralQuantError] = InputError) -> Any:
    """The value of a JSON file; `what` names it in messages. NaN and infinities, which JSON does not have, are refused.

    Raises:
        error: there is no such file, or it is not JSON.
    """
    return _read(path, what, error, "JSON", lambda text: json.loads(text, parse_constant=_refuse_constant))


def read_toml(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """The tables of a TOML file; `what` names it in messages.

    Raises:
        InputError: there is no such file, or it is not TOML.
    """
    return _read(path, what, InputError, "TOML", tomllib.loads)


def _read(path, what: str, error: type[SpectralQuantError], kind: str, parse: Callable[[str], Any]) -> Any:
    path = Path(path)
    if not path.is_file():
        raise error(f"{what} {path} is not a file. Check the path.")
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except OSError as why:
        raise error(f"{what} {path} cannot be read: {why.strerror}.") from why
    except RecursionError as why:
        raise error(f"{what} {path} cannot be read: it is nested too deeply.") from why
    except ValueError as why:  # not UTF-8, not JSON or TOML, or a number too long to be one
        raise error(f"{what} {path} is not {kind}: {why}.") from why


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
