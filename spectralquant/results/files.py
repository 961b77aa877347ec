"""The one form of every results file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spectralquant.errors import InputError
from spectralquant.files import read_json

RESULTS_SCHEMA = 1


def results_file(kind: str, rows: list[dict[str, Any]], provenance: dict[str, Any], **extra: Any) -> dict[str, Any]:
    """`{schema_version, kind, provenance, …, rows}`; rows use the names of method.md section 6 where they apply."""
    return {
        "schema_version": RESULTS_SCHEMA,
        "kind": f"spectralquant.{kind}",
        "provenance": provenance,
        **extra,
        "rows": rows,
    }


def read_results(path: str | Path) -> dict[str, Any]:
    """A results file.

    Raises:
        InputError: missing, not JSON, not a results file, or of another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no results file {path}. Check the path.")
    found = read_json(path, "The results file")
    if (
        not isinstance(found, dict)
        or not str(found.get("kind", "")).startswith("spectralquant.")
        or not isinstance(rows := found.get("rows"), list)
    ):
        raise InputError(f"{path} is not a results file of this toolkit (it has no kind and rows).")
    if found.get("schema_version") != RESULTS_SCHEMA:
        raise InputError(
            f"{path} has results schema {found.get('schema_version')}; this version reads {RESULTS_SCHEMA}. "
            "Write it anew with this version."
        )
    bad = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
    if bad is not None:
        raise InputError(f"{path} is damaged: row {bad + 1} is {str(rows[bad])[:40]!r}, not a table of figures.")
    if not isinstance(found.get("provenance"), dict):
        raise InputError(f"{path} is damaged: its provenance is missing.")
    return found


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Around code that takes a results file's rows apart: a field that is missing or of the wrong kind is the file's fault.

    Raises:
        InputError: naming the file and what was wrong.
    """
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise InputError(
            f"The results file {path} is damaged or from another version: {reason}. Write it anew with this version."
        ) from error
