"""`python -m research.results.borrowed`: figures of a file's summary that another file has measured, put where readers look for them.

The table says which (`Entry.borrows`). The file then names its source beside it, with the source's provenance, and is stale where that is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.results.stale import RESULTS
from research.results.table import TABLE, Entry
from spectralquant.files import write_json

SOURCES = "other_files"


def with_borrowed(result: dict[str, Any], entry: Entry, folders: Sequence[Path]) -> dict[str, Any]:
    """A results file's content with the figures that it borrows, from the first of `folders` that has their file; what no folder has stays as it
    is.
    """
    if not entry.borrows:
        return result
    summary, sources = dict(result["summary"]), {}
    for name, (other, figure) in entry.borrows:
        file = next((f for folder in folders if (f := folder / f"{other}.json").is_file()), None)
        if file is None:
            continue
        source = json.loads(file.read_text(encoding="utf-8"))
        summary[name] = source["summary"][figure]
        facts = sources.setdefault(file.name, {"figures": {}, "provenance": source["provenance"]})
        facts["figures"][name] = figure
    if not sources:
        return result
    return result | {"summary": summary, "settings": result.get("settings", {}) | {SOURCES: sources}}


def borrow(file: Path, entry: Entry, folders: Sequence[Path]) -> bool:
    """Complete a file where it lies; whether that changed it."""
    before = json.loads(file.read_text(encoding="utf-8"))
    after = with_borrowed(before, entry, folders)
    if after != before:
        write_json(file, after)
    return bool(after != before)


def main() -> int:
    """Name the files that were completed."""
    for entry in TABLE:
        file = RESULTS / f"{entry.name}.json"
        if entry.borrows and file.is_file() and borrow(file, entry, (RESULTS,)):
            print(f"{file.name}: {', '.join(name for name, _ in entry.borrows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
