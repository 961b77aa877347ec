"""Rows of any kind as sections of an HTML page: a table a part, its own columns alone, figures with their units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqcli.html.page import Page

LEFT_OUT = ("part", "ok", "measured", "git_commit", "git_dirty", "dirty", "created", "commit")
"""What tells the rows' sections, or stands in the provenance."""
UNITS = {"_nats": "nats", "_ms": "ms", "_us": "µs", "_s": "s"}
ONE_BY_ONE = 12
"""Columns beyond which one or two rows stand as lists."""
MEGA, GIGA = 1e6, 1e9


def plain_sections(page: Page, name: str, rows: Sequence[Any]) -> None:
    """A section, or one for each `part` that the rows name, and for each model of a part of several rows."""
    for part in dict.fromkeys(row.get("part") for row in rows):
        own = [row for row in rows if row.get("part") == part]
        title = name if part is None else f"{name}: {part}"
        models = dict.fromkeys(row.get("model") for row in own)
        if part is None or None in models or len(own) <= max(ONE_BY_ONE, len(models)):
            _section(page, title, own)
            continue
        for model in models:
            of_model = [row for row in own if row.get("model") == model]
            _section(page, f"{title}, {model.removeprefix('builtin:')}", of_model)


def _section(page: Page, name: str, rows: Sequence[Any]) -> None:
    """A table of what differs, and what is the same in all rows beside it; few wide rows one by one."""
    keys = [key for key in dict.fromkeys(k for row in rows for k in row.keys()) if key not in LEFT_OUT]  # noqa: SIM118 (a `Row` iterates otherwise)
    keys = [key for key in keys if any(_plain(row.get(key)) for row in rows)]
    if len(rows) < 3 and len(keys) > ONE_BY_ONE:
        for number, row in enumerate(rows, 1):
            which = name if len(rows) == 1 else f"{name}, {number} of {len(rows)}"
            page.facts(which, {label(key): figure(row.get(key), key) for key in keys if _plain(row.get(key))})
        return
    same = [key for key in keys if len(rows) > 2 and all(row.get(key) == rows[0].get(key) for row in rows)]
    differing = [key for key in keys if key not in same]
    if differing:
        table = [tuple(label(key) for key in differing)]
        table += [tuple(figure(row.get(key), key) for key in differing) for row in rows]
        page.table(name, table)
    if same:
        page.facts(f"{name}: the same in all rows", {label(key): figure(rows[0].get(key), key) for key in same})


def _plain(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and value is not True


def label(key: str) -> str:
    """A field's name in words, its unit behind it: `first_token_s` is `first token, s`."""
    for ending, unit in UNITS.items():
        if key.endswith(ending):
            return f"{key.removesuffix(ending).replace('_', ' ')}, {unit}"
    return key.replace("_", " ")


def figure(value: Any, key: str = "") -> str:
    """A field's value as text; bytes in MB or GB."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if key.endswith("bytes") and value >= MEGA:
        return f"{value / GIGA:.2f} GB" if value >= GIGA else f"{value / MEGA:.1f} MB"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
