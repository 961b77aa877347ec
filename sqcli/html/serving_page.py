"""Files of `sq serve-check` and of the serving studies as sections of an HTML page: a table a question, ways to serve beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spectralquant.results.schema import Results
from sqcli.html.page import Page

Row = Any
Column = tuple[str, Callable[[Row], Any]]

PERCENT = 100
SIZES = ("Prompts", "Tokens shared")


def serving_sections(page: Page, name: str, result: Results) -> None:
    """What was restored and how well, first tokens, decoding, the trace; then the summary and what was found wrong."""
    rows = result["rows"]
    title = f"{name}: {result['provenance'].get('device') or result['engine'].get('device')}"
    _table(page, f"{title}; what was restored", rows, RESTORED)
    _table(page, f"{title}; time to the first token of longer prompts", rows, _by_key(rows, LONG))
    _table(page, f"{title}; pages and decoding", rows, [("Pages", _field("pages")), *_by_key(rows, DECODING)])
    _table(page, f"{title}; a trace of shared prefixes", rows, TRACE)
    figures = {key.replace("_", " "): _text(value) for key, value in result["summary"].items() if value is not None}
    page.facts(f"{name}: summary", figures)
    notes = {row["way"]: row["note"] for row in rows if row.get("note")}
    faults = {str(number): fault for number, fault in enumerate(result["faults"], 1)}
    for what, found in (("notes", notes), ("what was found", faults)):
        if found:
            page.facts(f"{name}: {what}", found)


def _text(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return "–" if value is None else value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0 < abs(value) < 0.1 else f"{value:.3g}"


def _field(name: str, times: float = 1) -> Callable[[Row], Any]:
    def of(row: Row) -> Any:
        value = row.get(name)
        return value if value is None or times == 1 else times * value

    return of


def _entry(name: str, key: str, times: float) -> Callable[[Row], Any]:
    return lambda row: None if (value := (row.get(name) or {}).get(key)) is None else times * value


RESTORED: tuple[Column, ...] = (
    ("Prompts", _field("prompts")),
    ("Tokens shared", _field("prefix_tokens")),
    ("Hits, %", _field("hit_share", PERCENT)),
    ("Tokens not computed, %", _field("cached_tokens_share", PERCENT)),
    ("Same text, %", _field("same_text", PERCENT)),
    ("Top-1, %", _field("top1", PERCENT)),
    ("KL, nats", _field("kl_nats")),
    ("Ratio on disk", _field("bytes_ratio")),
    ("First token, s", _field("first_token_s")),
    ("Times computing", _field("over_recompute")),
)
TRACE: tuple[Column, ...] = (
    ("Requests", _field("trace_requests")),
    ("Prefixes", _field("trace_prefixes")),
    ("Disk, MB", _field("trace_budget", 1e-6)),
    ("Not computed, %", _field("trace_hit_share", PERCENT)),
    ("First token, s", _field("trace_first_token_s")),
)
LONG = (("{}, s", "long_first_token_s", 1), ("{}, times computing", "long_over_recompute", 1))
DECODING = (
    ("{} together, tokens/s", "decode_tokens_per_s", 1),
    ("{} together, while storing", "decode_storing_tokens_per_s", 1),
    ("{}: a step, ms", "decode_step_s", 1000),
    ("{}: of it in the connector, ms", "decode_connector_s", 1000),
)


def _by_key(rows: Sequence[Row], kinds: Sequence[tuple[str, str, float]]) -> list[Column]:
    """A column for each length or number of sequences that any row has a figure of."""
    out: list[Column] = []
    for head, name, times in kinds:
        keys = dict.fromkeys(key for row in rows for key in row.get(name) or ())
        order = sorted(keys, key=lambda key: (not key.isdigit(), int(key) if key.isdigit() else 0, key))
        out += [(head.format(f"{int(key):,}" if key.isdigit() else key), _entry(name, key, times)) for key in order]
    return out


def _table(page: Page, title: str, rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """Columns and rows with a figure besides the size of the prompts; no table where there is none."""
    figure = [i for i, (head, _) in enumerate(columns) if head not in SIZES]
    cells = {row["way"]: [of(row) for _, of in columns] for row in rows}
    cells = {way: line for way, line in cells.items() if any(line[i] is not None for i in figure)}
    used = [i for i in range(len(columns)) if any(line[i] is not None for line in cells.values())]
    if cells:
        body = [(way, *(_text(line[i]) for i in used)) for way, line in cells.items()]
        page.table(title, [("Way", *(columns[i][0] for i in used)), *body])
