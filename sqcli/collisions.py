"""Outputs must not fall on one another, nor on what the command reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from spectralquant.errors import InputError
from spectralquant.files import user_path

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None


def profile_files(path: Path | None) -> tuple[Path, ...]:
    """The two files of a profile; none where there is no path."""
    from spectralquant.profile.sidecar import profile_stem

    if path is None:
        return ()
    stem = profile_stem(path)
    return stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".safetensors")


def text_files(texts: Sequence[str]) -> tuple[Path, ...]:
    """What `--data` texts may name on disk, with and without a column; folders and globs are left out."""
    from spectralquant.text.read import parse_weight

    names = [parse_weight(text)[0].removeprefix("file:") for text in texts if not text.startswith(("builtin:", "hub:"))]
    candidates = [Path(part) for name in names for part in (name, name.rpartition(":")[0]) if part]
    return tuple(path for path in map(user_path, candidates) if path.is_file())


def require_apart(writes: Mapping[str, Paths], reads: Mapping[str, Paths]) -> None:
    """Refuse outputs that would replace an input or one another.

    Raises:
        InputError: names both options.
    """
    taken: list[tuple[str, Path]] = [(option, path) for option, paths in reads.items() for path in each_path(paths)]
    for option, paths in writes.items():
        own = [(option, path) for path in each_path(paths)]
        for _, path in own:
            for other, existing in taken:
                if _same(path, existing):
                    raise InputError(f"{option} {path} is also a file of {other}. Choose another path.")
        taken += own


def each_path(paths: Paths) -> list[Path]:
    """One path, several or none, as a list."""
    if paths is None:
        return []
    return [Path(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]


def _same(one: Path, other: Path) -> bool:
    """The same file, also through links; only regular files (and what is not there yet) can be lost."""
    try:
        if one.exists() and other.exists():
            return one.is_file() and one.samefile(other)
        return os.path.realpath(one) == os.path.realpath(other)
    except (OSError, ValueError):
        return False  # a name that no file can have is refused by require_writable
