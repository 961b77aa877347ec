"""Typed rows among the kept parts of an unfinished run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from spectralquant.results.base import Row
from spectralquant.results.unfinished import Kept

Kind = TypeVar("Kind", bound=Row)


def kept_rows(kept: Kept, name: str, kind: type[Kind], make: Callable[[], Sequence[Kind]]) -> list[Kind]:
    """The rows that `make` returns, or returned in the run that was interrupted."""
    return [kind.model_validate(row) for row in kept.value(name, lambda: [row.as_json() for row in make()])]
