"""The table of `sq serve-check`."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from spectralquant.results.schema import Results
from spectralquant.results.serving import ServingRow


def serving_view(result: Results) -> list[RenderableType]:
    """One line a way to serve; a second table for long prompts and the trace; what the check found."""
    first = result.rows[0]
    title = f"{first.prompts} prompts sharing {first.prefix_tokens:,} tokens, each restored in a new process; times are medians"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    table.add_column("served by")
    for name in ("hits", "same text", "KL, nats", "bytes ratio", "first token, s", "of recompute"):
        table.add_column(name, justify="right")
    for row in result.rows:
        table.add_row(
            row.way,
            _share(row.hit_share),
            _share(row.same_text),
            _figure(row.kl_nats, 4),
            _figure(row.bytes_ratio, 1),
            _figure(row.first_token_s, 3),
            _figure(row.over_recompute, 2),
        )
    parts: list[RenderableType] = [table]
    if first.long_first_token_s or first.trace_requests:
        parts.append(_more(result.rows))
    return parts + [Text(f"found: {fault}") for fault in result.faults]


def _more(rows: list[ServingRow]) -> Table:
    first = rows[0]
    table = Table(title_justify="left", box=None, padding=(0, 1))
    if first.trace_requests:
        budgets = {row.trace_budget for row in rows if row.trace_budget}
        size = f"{max(budgets) / 1e6:,.0f} MB of disk" if budgets else "no store"
        table.title = f"\ntrace: {first.trace_requests} requests over {first.trace_prefixes} prefixes, {size}"
    table.add_column("served by")
    for length in first.long_first_token_s:
        table.add_column(f"{int(length):,} tokens, s", justify="right")
        table.add_column("of recompute", justify="right")
    table.add_column("trace: not computed", justify="right")
    table.add_column("first token, s (mean)", justify="right")
    for row in rows:
        cells = []
        for length in first.long_first_token_s:
            cells += [_figure(row.long_first_token_s.get(length), 2), _figure(row.long_over_recompute.get(length), 2)]
        table.add_row(row.way, *cells, _share(row.trace_hit_share), _figure(row.trace_first_token_s, 3))
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
