"""Which architectures work: the tables of docs/architectures.md."""

from __future__ import annotations

from typing import Any

from research.readme.tools import load, table

ROTATION = {"halves": "in halves", "neighbours": "interleaved", None: "none"}


def architectures() -> str:
    """Those that are right, then those that are refused with the reason."""
    result = load("architectures")
    rows = result["rows"]
    right, refused = ([r for r in rows if r["outcome"] == outcome] for outcome in ("right", "refused"))
    body = [
        [
            f"`{r['name']}`",
            r["what"],
            ROTATION[r["rotary_pairs"]],
            _windows(r),
            f"{r['distances']['exact']:.2g}",
            *(f"{r['distances'][k]:.3f}" for k in ("cold", "warm", "hot", "packet")),
        ]
        for r in right
    ]
    head = ["right", "attention", "RoPE", "windows", "exact", "cold", "warm", "hot", "packet"]
    version = result["provenance"]["transformers"]
    return (
        f"{len(right)} right and {len(refused)} refused, with transformers {version}.\n\n"
        + table(head, body)
        + "\n\n"
        + table(
            ["refused", "attention", "reason"], [[f"`{r['name']}`", r["what"], _escaped(r["reason"])] for r in refused]
        )
    )


def _windows(row: dict[str, Any]) -> str:
    windows = row["windows"]
    if not any(windows):
        return "–"
    narrow = sum(w is not None for w in windows)
    return f"{narrow} of {len(windows)} layers"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
