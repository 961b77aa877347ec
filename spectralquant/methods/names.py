"""Names of the methods, read off their files: a typo is answered without importing one of them."""

from __future__ import annotations

import functools
from pathlib import Path

FOLDERS = ("coding", "eviction")


@functools.cache
def method_names() -> tuple[str, ...]:
    """Every method's name, which is its file's, in alphabetical order."""
    here = Path(__file__).parent
    files = (file for folder in FOLDERS for file in (here / folder).glob("*.py"))
    return tuple(sorted(file.stem for file in files if "\nMETHOD" in file.read_text(encoding="utf-8")))
