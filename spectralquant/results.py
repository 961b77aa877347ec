"""The one form of every results file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spectralquant.errors import InputError

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
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}).") from error
    if (
        not isinstance(found, dict)
        or not str(found.get("kind", "")).startswith("spectralquant.")
        or "rows" not in found
    ):
        raise InputError(f"{path} is not a results file of this toolkit (it has no kind and rows).")
    if found.get("schema_version") != RESULTS_SCHEMA:
        raise InputError(
            f"{path} has results schema {found.get('schema_version')}; this version reads {RESULTS_SCHEMA}. "
            "Write it anew with this version."
        )
    return found
