"""Names of the tasks, read off their files: help needs none of them imported."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def task_files() -> tuple[str, ...]:
    """Every task's name, which is its file's, in alphabetical order."""
    files = Path(__file__).parent.glob("*.py")
    return tuple(sorted(file.stem for file in files if "\nTASK" in file.read_text(encoding="utf-8")))
