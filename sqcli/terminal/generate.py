"""`sq profile --generate` in the terminal: what a call of `model.generate` gets, a table a kind of cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

Row = dict[str, Any]
NAMES = {
    "static_compiled": "StaticCache, compiled",
    "dynamic": "DynamicCache, eager",
    "hot": "hot codes, graphs",
    "hot_select": "hot codes, graphs, selection",
    "warm": "warm codes, eager",
}


def generate_view(result: dict[str, Any]) -> list[RenderableType]:
    """Everything one screen should say."""
    facts, settings = result["provenance"], result["settings"]
    head = f"\n{facts['model']} on {facts['device']}: model.generate of {settings['new_tokens']} tokens"
    parts: list[RenderableType] = [Text(head, style="bold")]
    decode = [r for r in result["rows"] if r["kind"] == "decode"]
    for context, batch in sorted({(r["context"], r["batch"]) for r in decode}):
        parts.append(_decode_table([r for r in decode if (r["context"], r["batch"]) == (context, batch)]))
    first = [r for r in result["rows"] if r["kind"] == "first_token"]
    if first:
        parts.append(_first_table(first))
    parts += [_capacity(r) for r in result["rows"] if r["kind"] == "capacity"]
    return parts


def _decode_table(rows: Sequence[Row]) -> Table:
    title = f"\ncontext {rows[0]['context']:,}, batch {rows[0]['batch']}"
    table = _table(title, ("cache", "tokens/s", "ms a token", "slowest", "GB at most"))
    for r in rows:
        name = NAMES.get(r["method"], r["method"])
        if "failed" in r:
            table.add_row(name, Text(r["failed"], "yellow"))
            continue
        slowest = "" if r.get("stall_ms") is None else f"+{r['stall_ms']:.1f} ms"
        each = f"{1000 * r['batch'] / r['tokens_per_s']:.2f}"
        table.add_row(name, f"{r['tokens_per_s']:,.0f}", each, slowest, _gigabytes(r))
    return table


def _first_table(rows: Sequence[Row]) -> Table:
    table = _table("\ntime to first token", ("cache", "context", "ms", "first time, ms"))
    for r in rows:
        figures = (f"{r['ttft_ms']:.0f}", f"{r['ttft_first_ms']:.0f}") if "failed" not in r else (r["failed"], "")
        table.add_row(NAMES.get(r["method"], r["method"]), f"{r['context']:,}", *figures)
    return table


def _capacity(row: Row) -> Text:
    name = NAMES.get(row["method"], row["method"])
    if "failed" in row:
        return Text(f"{name}: no batch of {row['context']:,} tokens fits", "yellow")
    return Text(
        f"{name}: batch {row['batch']} of {row['context']:,} tokens fits, {row['tokens_per_s']:,.0f} tokens/s in all"
    )


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table


def _gigabytes(row: Row) -> str:
    return "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 1e9:.1f}"
