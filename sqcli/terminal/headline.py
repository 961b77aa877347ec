"""`sq study headline` in the terminal: a table a model and text."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table

from spectralquant.results.schema import HeadlineResults
from sqcli.terminal.compare import bound_text


def headline_tables(result: HeadlineResults) -> list[RenderableType]:
    """Payload ratios at equal quality, then speeds."""
    parts: list[RenderableType] = []
    for model, text in dict.fromkeys((r.model, r.text) for r in result.rows):
        rows = [r for r in result.rows if (r.model, r.text) == (model, text)]
        title = (
            f"\n{model}, {text}: {rows[0].n_tokens:,} tokens in {rows[0].n_windows} windows, at KL {rows[0].kl_nats:g}"
        )
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
        for name in ("method", "protocol", "profile", "payload ratio", "profile, MB"):
            table.add_column(name, justify="left" if name in ("method", "protocol", "profile") else "right")
        for row in sorted(rows, key=lambda r: -(r.payload_ratio or 0)):
            size = "" if row.profile_bytes is None else f"{row.profile_bytes / 1e6:.0f}"
            table.add_row(row.method, row.mode or "", row.profile or "", bound_text(row), size)
        parts.append(table)
    if result.speed:
        first = result.speed[0]
        title = f"\n{first.device}: one window of {first.context:,} tokens, block by block"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
        for name in ("model", "method", "encode GB/s", "decode GB/s", "first token, ms", "prefill, ms"):
            table.add_column(name, justify="left" if name in ("model", "method") else "right")
        for row in result.speed:
            options = " ".join(f"{k}={v}" for k, v in row.options.items() if k in ("target_ratio", "bits", "ratio"))
            figures = (f"{row.encode_gb_s:.3f}", f"{row.decode_gb_s:.3f}")
            times = (f"{1000 * row.first_token_s:.1f}", f"{1000 * row.prefill_s:.1f}")
            table.add_row(row.model, f"{row.method} {options}", *figures, *times)
        parts.append(table)
    return parts
