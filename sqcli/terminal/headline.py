"""`sq study headline`: the table a sceptic would ask for, in the terminal; pages and docs show the same cells."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table

from spectralquant.results.schema import HeadlineResults
from spectralquant.results.studies import HeadlineRow, MethodSpeedRow
from sqcli.terminal.compare import bound_text

NEVER = "–"
OWN, GENERAL, FOREIGN = "spectral, own profile", "general profile", "foreign profile"
Grid = list[tuple[str, ...]]


def quality_grid(result: HeadlineResults) -> Grid:
    """Head, then a row a model and text: the payload ratio of every method at the study's KL.

    A rival's cell is the best of its variants and protocols. `≥`: its smallest code is better than that KL; a dash: no budget is that good.
    """
    rivals = dict.fromkeys(_family(r) for r in result.rows if r.method != "spectral")
    head = ("model", "text", "windows", OWN, "MB", GENERAL, FOREIGN, *rivals)
    out: Grid = [head]
    for model, text in dict.fromkeys((r.model, r.text) for r in result.rows):
        rows = [r for r in result.rows if (r.model, r.text) == (model, text)]
        own, general, foreign = (
            _best(
                [
                    r
                    for r in rows
                    if r.method == "spectral" and r.mode != "prompt" and (r.profile or "").startswith(kind)
                ]
            )
            for kind in ("own", "general", "foreign")
        )
        size = NEVER if own is None or own.profile_bytes is None else f"{own.profile_bytes / 1e6:.0f}"
        best = [_best([r for r in rows if _family(r) == rival]) for rival in rivals]
        name = model.removeprefix("builtin:")
        cells = (_cell(own), size, _cell(general), _cell(foreign), *map(_cell, best))
        out.append((name, text, str(rows[0].n_windows), *cells))
    return out


def speed_grid(rows: Sequence[MethodSpeedRow]) -> Grid:
    """Head, then a row a method: rates of coding block by block, and the time to the next token of a coded window."""
    out: Grid = [("model", "method", "encode GB/s", "decode GB/s", "next token", "prefill")]
    for r in rows:
        options = [
            f"{k.replace('_', ' ')} {v:g}"
            for k, v in r.options.items()
            if k in ("target_ratio", "bits", "ratio", "outliers")
        ]
        name = " ".join([r.method, *options]).replace("target ratio", "for")
        times = (f"{1000 * (r.first_token_s or 0):.0f} ms", f"{1000 * (r.prefill_s or 0):.0f} ms")
        out.append((r.model.removeprefix("builtin:"), name, f"{r.encode_gb_s:.2f}", f"{r.decode_gb_s:.2f}", *times))
    return out


def headline_tables(result: HeadlineResults) -> list[RenderableType]:
    """Payload ratios at equal quality, a table a model so that it fits the screen, then speeds."""
    parts: list[RenderableType] = []
    head, *rows = quality_grid(result)
    kl = result.rows[0].kl_nats if result.rows else 0
    for model in dict.fromkeys(row[0] for row in rows):
        title = f"\n{model}: payload ratio at KL {kl:g} nats/token, by text"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
        mine = [row for row in rows if row[0] == model]
        table.add_column("")
        for row in mine:
            table.add_column(row[1], justify="right")
        for place, name in enumerate(head[2:], 2):
            table.add_row(name, *(row[place] for row in mine))
        parts.append(table)
    if result.speed:
        first = result.speed[0]
        title = f"\n{first.device}: one window of {first.context:,} tokens, block by block"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
        head, *rows = speed_grid(result.speed)
        for name in head:
            table.add_column(name, justify="left" if name in ("model", "method") else "right")
        for row in rows:
            table.add_row(*row)
        parts.append(table)
    return parts


def _family(row: HeadlineRow) -> str:
    return row.method.partition(" ")[0]


def _best(rows: Sequence[HeadlineRow]) -> HeadlineRow | None:
    return max(rows, key=lambda r: r.payload_ratio or 0, default=None)


def _cell(row: HeadlineRow | None) -> str:
    return NEVER if row is None or row.payload_ratio is None else bound_text(row)
