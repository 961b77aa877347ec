"""`sq study cold-speed` as sections of an HTML page: time to the first token by context, speeds, every figure."""

from __future__ import annotations

from typing import Any

from spectralquant.results.schema import Results
from sqcli.html.charts import xy_chart
from sqcli.html.page import Page
from sqcli.terminal.times.cold_speed import FIRST_TOKENS, speed_rows

Row = dict[str, Any]


def cold_sections(page: Page, name: str, result: Results) -> None:
    """The curve of the first token, then tables."""
    rows = result["rows"]
    title = f"{name}: {result['provenance']['device']}"
    series: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        if r["what"] in FIRST_TOKENS:
            series.setdefault(r["what"], []).append((r["context"], 1000 * r["seconds"]))
    if series:
        chart = xy_chart(
            {k: sorted(v) for k, v in series.items()},
            "context, tokens",
            "time to the first token, ms",
            log_x=True,
            log_y=True,
        )
        page.figure(f"{title}; time to the first token", chart)
    head = ("", "Model", "Tokens", "ms", "Spread", "GB/s of fp16", "MB")
    page.table(f"{title}; every figure", [head, *speed_rows(rows)])
    page.facts(f"{name}: checks", result["checks"])
    page.facts(f"{name}: how it was made", {"statistics": result["provenance"]["made"]})
