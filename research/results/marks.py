"""Marks of figures whose results file is stale, and the list of such files."""

from __future__ import annotations

from collections.abc import Sequence

from research.readme.tools import table
from research.results.stale import listed

NONE = "Every figure is of a file that this checkout's code made."


def dagger(names: Sequence[str]) -> str:
    """A line below a block that was made from stale files; nothing where all are fresh."""
    stale = [f"`{name}.json`" for name in dict.fromkeys(names) if name in listed()]
    return f"\n\n† Stale: {', '.join(stale)}." if stale else ""


def stale() -> str:
    """Every listed file with its reason."""
    rows = [[f"`{name}.json`", reason] for name, reason in sorted(listed().items())]
    return table(["stale file", "why"], rows).replace("--:", "---") if rows else NONE
