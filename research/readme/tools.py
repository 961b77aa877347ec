"""What the README's blocks are made of: results files and Markdown tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from research.results.table import TABLE
from spectralquant.results.files import read_results

OPENED: list[str] = []
"""Names of the results files that were read since `render` began a block."""
RESULTS = Path(__file__).resolve().parent.parent.parent / "profiles" / "results"


def load(name: str) -> Any:
    """A results file by name."""
    OPENED.append(name)
    return read_results(RESULTS / f"{name}.json")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def down(value: float) -> str:
    """One decimal, two below 2, never rounded up."""
    return f"{math.floor(100 * value) / 100:.2f}" if value < 2 else f"{math.floor(10 * value) / 10:.1f}"


def is_there(name: str) -> bool:
    """Whether a results file has been written."""
    return (RESULTS / f"{name}.json").is_file()


def missing(name: str) -> str:
    """What stands where a results file is not there yet."""
    needs = next(entry.needs for entry in TABLE if entry.name == name)
    make = {"gpu": "make results-gpu", "cpu": "make results"}[needs]
    return f'Not measured yet: there is no `{name}.json`, which `{make} MORE="--only {name}"` writes.'
