"""The one form of every results file."""

from __future__ import annotations

from typing import Any

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
