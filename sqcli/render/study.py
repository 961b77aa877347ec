"""Tables of measured studies."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table


def study_view(result: dict[str, Any]) -> list[RenderableType]:
    """All rows of a study, one table a context length."""
    parts: list[RenderableType] = []
    for context in sorted({row["context"] for row in result["rows"]}):
        rows = [r for r in result["rows"] if r["context"] == context]
        table = Table(title=f"\n{context}-token windows, n = {rows[0]['n_tokens']:,} scored tokens, base PPL "
                            f"{rows[0]['base_ppl']:.2f}", title_justify="left", box=None, padding=(0, 1))
        table.add_column("method")
        for name in ("payload ratio", "whole cache", "ΔPPL", "KL, nats", "top-1"):
            table.add_column(name, justify="right")
        for r in rows:
            table.add_row(_label(r), f"{r['payload_ratio']:.1f}", f"{r['whole_cache_ratio']:.1f}", f"{r['delta_ppl']:+.3f}",
                          f"{r['kl_nats']:.4f}", f"{100 * r['top1']:.1f} %")
        parts.append(table)
    return parts


def _label(row: dict[str, Any]) -> str:
    options = row["options"]
    shown = {k: v for k, v in options.items() if k not in ("tier", "exact_bits")}
    if options.get("exact_bits") == 8:
        shown["window"] = "int8"
    return row["method"] + "".join(f" {k}={v}" for k, v in shown.items())
