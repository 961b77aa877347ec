"""Files that are no profile are named for what they are, before they are read as one."""

from __future__ import annotations

import json
from pathlib import Path


def refuse_other_files(path: Path) -> None:
    """Refuse a folder, results of a command, or any file that is no profile's.

    Raises:
        InputError: which of them it is, and what reads it.
    """
    from spectralquant.errors import InputError
    from sqcli.collisions import profile_files

    if path.is_dir() and not any(p.is_file() for p in profile_files(path)):
        raise InputError(f"{path} is a folder. Name the profile in it, as {path / 'NAME'}.")
    sidecar, _ = profile_files(path)
    if path.is_file() and not sidecar.is_file():
        raise InputError(f"{path} is no profile: that is NAME.json with NAME.safetensors beside it, named as NAME.")
    if _holds_results(sidecar):
        raise InputError(f"{sidecar} holds results of a command, not a profile. `sq report {sidecar}` shows it.")


def _holds_results(file: Path) -> bool:
    """False for what cannot be read, which the profile's own checks refuse."""
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(made, dict) and "rows" in made and str(made.get("kind", "")).startswith("spectralquant.")
