"""`sq study cold-speed` in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

Row = dict[str, Any]
FIRST_TOKENS = (
    "prefill",
    "first token from pinned memory",
    "first token from disk",
    "first token from disk, file cached",
)


def speed_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """What, model, tokens, milliseconds, spread, GB/s of fp16 keys and values, megabytes."""
    for r in rows:
        tokens = f"{r['context']:,}" + (f" × {r['batch']}" if r["batch"] > 1 else "")
        spread = f"{1000 * r['seconds_low']:.1f}–{1000 * r['seconds_high']:.1f}" if "seconds_high" in r else ""
        size = f"{r['packet_bytes'] / 1e6:.1f}" if "packet_bytes" in r else ""
        what = r["what"] + (f" ({r['coder']})" if "coder" in r else "")
        yield what, r["model"], tokens, f"{1000 * r['seconds']:.1f}", spread, f"{r['gb_s']:.1f}", size


def cold_speed_table(result: dict[str, Any]) -> Table:
    """Every row of the study."""
    table = Table(title="\nPackets, medians", title_justify="left", box=None, padding=(0, 1))
    for name in ("", "model", "tokens", "ms", "spread", "GB/s of fp16", "MB"):
        table.add_column(name, justify="left" if name in ("", "model") else "right")
    for row in speed_rows(result["rows"]):
        table.add_row(*row)
    return table
