"""A comparison in the terminal: sorted table, Pareto plot, and methods at equal quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from spectralquant.evaluation.match import curve_name, matched, mode_of_row, pareto
from spectralquant.results.quality import MatchedRow, MethodRow, TaskScore
from spectralquant.results.schema import CompareResults
from spectralquant.results.studies import HeadlineRow
from sqcli.figures import shown
from sqcli.quotable import quotable_note
from sqcli.terminal.plot import log_plot

PLOT_WIDTH, PLOT_HEIGHT = 72, 18
USUAL = {"kernel": (5,), "group": (32, 64), "future": (512,)}
SHORT = {"step_scale": "step x", "exact_bits": "exact bits ", "target_ratio": "for ratio ", "tolerance": "tolerance "}
NAMED = {"adaptive_ranks": "ranks follow", "adaptive_tables": "adaptive tables"}


def comparison_view(result: CompareResults, match: float | None) -> list[RenderableType]:
    """Everything one screen should say."""
    good = [r for r in result.rows if not r.failed]
    parts: list[RenderableType] = []
    front = {id(r) for r in pareto(good)}
    for context, mode in dict.fromkeys((r.context, mode_of_row(r)) for r in good):
        rows = [r for r in good if (r.context, mode_of_row(r)) == (context, mode)]
        parts += [_table(rows, front, context), pareto_plot(rows)]
    if any(r.tasks for r in good):
        parts.append(tasks_table(good))
    if match is not None:
        parts.append(match_table(matched(good, match)))
    for row in result.failed:
        options = ",".join(f"{k}={v}" for k, v in row.options.items())
        parts.append(Text(f"failed: {row.method} {options}: {row.failed}", style="red"))
    if (note := quotable_note(result)) is not None:
        parts.append(Text(note, style="yellow"))
    return parts


def row_name(row: MethodRow) -> str:
    """Method and budget, short; which protocol it was measured in is told beside it."""
    options = {k: v for k, v in row.options.items() if v not in (None, False)}
    if row.method == "spectral":
        tier = options.pop("tier", "cold")
        options.pop("exact_bits") if options.get("exact_bits") == 16 else None
        return " ".join([f"spectral {tier}", ", ".join(_option(k, v) for k, v in options.items())]).rstrip()
    hidden = {"tier", "exact_bits", "mode"} | {k for k, usual in USUAL.items() if options.get(k) in usual}
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
    protocol = "" if base.mode is None else f"{mode_text(base)}\n"
    title = (
        f"\n{protocol}{context}-token windows, n = {base.n_tokens:,} scored in {base.n_windows}, uncompressed PPL "
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


def mode_text(row: MethodRow) -> str:
    """What a row's protocol did, in a line."""
    if mode_of_row(row) == "streaming":
        return "streaming: text leaves the window block by block and is read compressed from then on"
    return f"prompt: {row.prompt_tokens:,} tokens compressed once, the rest of each window scored"


def tasks_table(rows: Sequence[MethodRow]) -> Table:
    """Share of trials answered right in each task, the uncompressed model's beside it."""
    first: dict[tuple[str, str], MethodRow] = {}
    for r in rows:
        first.setdefault((mode_of_row(r), row_name(r)), r)
    names = list(dict.fromkeys(name for r in first.values() for name in r.tasks))
    table = Table(title="\nTasks, % right (uncompressed)", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for head in ("protocol", "method"):
        table.add_column(head)
    for name in names:
        table.add_column(name, justify="right")
    for (mode, label), r in first.items():
        scores = [r.tasks.get(name) for name in names]
        table.add_row(mode, label, *("–" if s is None else task_text(s) for s in scores))
    return table


def task_text(score: TaskScore) -> str:
    """`80 (100)`: per cent of trials, and what the uncompressed model reaches."""
    if score.score is None or score.uncompressed is None:
        return "–"
    return f"{100 * score.score:.0f} ({100 * score.uncompressed:.0f})"


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
    """Ratios at one KL, and how many times smaller spectral is."""
    table = Table(title=f"\nAt KL {rows[0].kl_nats:g} nats/token", title_justify="left", box=None, padding=(0, 1))
    for name in ("tokens", "protocol", "method", "payload", "cache", "against spectral"):
        table.add_column(name, justify="left" if name in ("method", "protocol") else "right")
    for r in rows:
        ours = next((o for o in rows if _same_test(o, r) and o.method == "spectral cold"), None)
        cache = "–" if r.whole_cache_ratio is None else shown("whole_cache_ratio", r.whole_cache_ratio)
        table.add_row(str(r.context), r.mode or "streaming", r.method, bound_text(r), cache, against(ours, r))
    return table


def _same_test(a: MatchedRow, b: MatchedRow) -> bool:
    return (a.context, a.mode) == (b.context, b.mode)


def bound_text(row: MatchedRow | HeadlineRow) -> str:
    """`12.3`, `≥ 12.3`, or that no budget was good enough."""
    if row.payload_ratio is None:
        return "no budget measured here is that good"
    return ("≥ " if row.bound == "at least" else "") + shown("payload_ratio", row.payload_ratio)


def against(ours: MatchedRow | None, row: MatchedRow) -> str:
    """How many times smaller spectral is, where both are known well enough to say: by payload, or by whole caches where a method
    holds all its tokens in its budget, as evicting ones do."""
    if ours is None or ours.payload_ratio is None or row.payload_ratio is None or row is ours:
        return ""
    if row.bound == "at least":
        return "unknown: its smallest code is better than that"
    ratio, whole = ours.payload_ratio / row.payload_ratio, ""
    if (
        ours.whole_cache_ratio
        and row.whole_cache_ratio
        and math.isclose(row.whole_cache_ratio, row.payload_ratio, rel_tol=1e-3)
    ):
        ratio, whole = ours.whole_cache_ratio / row.whole_cache_ratio, ", whole caches"
    return f"spectral is {'≥ ' if ours.bound == 'at least' else ''}{math.floor(10 * ratio) / 10:.1f} x smaller{whole}"
