"""A comparison in the terminal: sorted table, Pareto plot, and methods at equal quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from spectralquant.evaluation.match import curve_name, matched, pareto
from spectralquant.results.quality import MatchedRow, MethodRow
from spectralquant.results.schema import CompareResults
from sqcli.figures import shown
from sqcli.quotable import quotable_note
from sqcli.terminal.plot import log_plot

PLOT_WIDTH, PLOT_HEIGHT = 72, 18
USUAL = {"kernel": (7,), "group": (32, 64)}
SHORT = {"step_scale": "step x", "exact_bits": "exact bits ", "target_ratio": "for ratio ", "tolerance": "tolerance "}
NAMED = {"adaptive_ranks": "ranks follow", "adaptive_tables": "adaptive tables"}


def comparison_view(result: CompareResults, match: float | None) -> list[RenderableType]:
    """Everything one screen should say."""
    good = [r for r in result.rows if not r.failed]
    parts: list[RenderableType] = []
    front = {id(r) for r in pareto(good)}
    for context in dict.fromkeys(r.context for r in good):
        rows = [r for r in good if r.context == context]
        parts += [_table(rows, front, context), pareto_plot(rows)]
    if match is not None:
        parts.append(match_table(matched(good, match)))
    for row in result.failed:
        options = ",".join(f"{k}={v}" for k, v in row.options.items())
        parts.append(Text(f"failed: {row.method} {options}: {row.failed}", style="red"))
    if (note := quotable_note(result)) is not None:
        parts.append(Text(note, style="yellow"))
    return parts


def row_name(row: MethodRow) -> str:
    """Method and budget, short."""
    options = {k: v for k, v in row.options.items() if v not in (None, False)}
    if row.method == "spectral":
        tier = options.pop("tier", "cold")
        options.pop("exact_bits") if options.get("exact_bits") == 16 else None
        return " ".join([f"spectral {tier}", ", ".join(_option(k, v) for k, v in options.items())]).rstrip()
    hidden = {"tier", "exact_bits"} | {k for k, usual in USUAL.items() if options.get(k) in usual}
    parts = [str(v) if k == "backend" else _option(k, v) for k, v in options.items() if k not in hidden]
    return " ".join([row.method, *parts])


def _option(name: str, value: Any) -> str:
    if value is True:
        return NAMED.get(name, name.replace("_", " "))
    return f"{SHORT[name]}{_short(value)}" if name in SHORT else f"{name}={_short(value)}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[MethodRow], front: set[int], context: int) -> Table:
    base = rows[0]
    title = (
        f"\n{context}-token windows, n = {base.n_tokens:,} scored in {base.n_windows}, uncompressed PPL "
        f"{base.base_ppl:.2f}\nsorted by KL; ● on the Pareto front; enc, dec: s per 1,000 tokens"
    )
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("method")
    needles = any(r.needle is not None for r in rows)
    for name in ("payload", "cache", "ΔPPL", "KL", "top-1", *(["needle"] if needles else []), "enc", "dec"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in sorted(rows, key=lambda r: r.kl_nats):
        mark = "●" if id(r) in front else " "
        needle = "–" if r.needle is None else f"{shown('needle', r.needle)}%"
        table.add_row(
            Text(f"{mark} {row_name(r)}", style="bold cyan" if r.method == "spectral" else ""),
            shown("payload_ratio", r.payload_ratio),
            shown("whole_cache_ratio", r.whole_cache_ratio),
            shown("delta_ppl", r.delta_ppl),
            shown("kl_nats", r.kl_nats),
            shown("top1", r.top1),
            *([needle] if needles else []),
            shown("encode_s", r.encode_s),
            shown("decode_s", r.decode_s),
        )
    return table


def pareto_plot(rows: Sequence[MethodRow]) -> Text:
    """Payload ratio against KL, both logarithmic; one letter a method. Lower right is better."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        if r.method != "none" and 0 < r.payload_ratio < 1e6:
            curves.setdefault(curve_name(r), []).append((r.payload_ratio, max(r.kl_nats, 1e-6)))
    if not curves:
        return Text("")
    plot = log_plot(curves, "payload ratio (lower right is better)", "KL", width=PLOT_WIDTH, height=PLOT_HEIGHT)
    return Text("\n").append_text(plot)


def match_table(rows: Sequence[MatchedRow]) -> Table:
    """Payload ratios at one KL, and how many times smaller spectral is."""
    table = Table(title=f"\nAt KL {rows[0].kl_nats:g} nats/token", title_justify="left", box=None, padding=(0, 1))
    for name in ("tokens", "method", "payload", "against spectral"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for r in rows:
        ours = next((o for o in rows if o.context == r.context and o.method == "spectral cold"), None)
        table.add_row(str(r.context), r.method, bound_text(r), against(ours, r))
    return table


def bound_text(row: MatchedRow) -> str:
    """`12.3`, `≥ 12.3`, or that no budget was good enough."""
    if row.payload_ratio is None:
        return "no budget is that good"
    return ("≥ " if row.bound == "at least" else "") + shown("payload_ratio", row.payload_ratio)


def against(ours: MatchedRow | None, row: MatchedRow) -> str:
    """How many times smaller spectral is, where both are known well enough to say."""
    if ours is None or ours.payload_ratio is None or row.payload_ratio is None or row is ours:
        return ""
    if row.bound == "at least":
        return "unknown: its curve ends above"
    times = math.floor(10 * ours.payload_ratio / row.payload_ratio) / 10
    return f"spectral is {'≥ ' if ours.bound == 'at least' else ''}{times:.1f} x smaller"
