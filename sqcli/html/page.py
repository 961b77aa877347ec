"""One self-contained HTML page: no scripts, no fonts or files fetched, light and dark, desktop and phone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from spectralquant.files import write_text
from sqcli.html.charts import Chart

# Class of a table → width of its card, in CSS pixels, under which rows become blocks.
STACK_AT = {"narrow": 420, "medium": 760, "broad": 1100, "widest": 1200, "always": 100_000}
LONG_TEXT = 28
CHARACTER, GAP = 9.0, 21  # CSS pixels of a character, and between columns


class Page:
    """A page of sections, built in order."""

    def __init__(self, title: str, subtitle: str) -> None:
        self.title, self.subtitle = title, subtitle
        self._sections: list[dict[str, Any]] = []
        self._contents: list[dict[str, str]] = []
        self._pending: str | None = None

    def chapter(self, title: str) -> None:
        """The next section is the first of a chapter, which the list of contents names."""
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        taken = {entry["anchor"] for entry in self._contents}
        while anchor in taken:
            anchor += "-2"
        self._contents.append({"title": title, "anchor": anchor})
        self._pending = anchor

    def figure(self, title: str, chart: Chart) -> None:
        """A chart with its legend."""
        self._add(kind="figure", title=title, svg=chart.svg, legend=chart.legend)

    def table(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        """A table; the first row is its head. Columns of long text are left-aligned and wrap."""
        head, *body = rows
        text = [i for i in range(1, len(head)) if max((len(r[i]) for r in body), default=0) > LONG_TEXT]
        stack = next(name for name, limit in STACK_AT.items() if _width(rows) <= limit)
        self._add(kind="table", title=title, head=head, rows=body, stack=stack, text_columns=text)

    def facts(self, title: str, facts: dict[str, Any], folded: str | None = None) -> None:
        """Named facts, nested ones as lines of their own; with `folded` behind that line, to be opened."""
        self._add(kind="facts", title=title, facts=flat(facts), folded=folded)

    def _add(self, **section: Any) -> None:
        self._sections.append({**section, "anchor": self._pending})
        self._pending = None

    def render(self) -> str:
        """The whole document."""
        environment = Environment(
            loader=PackageLoader("sqcli.html"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        return environment.get_template("page.html").render(
            title=self.title,
            subtitle=self.subtitle,
            sections=self._sections,
            contents=self._contents,
            stack_at=STACK_AT,
        )


def _width(rows: Sequence[Sequence[str]]) -> float:
    """About how many pixels a table takes where heads break between words, and long texts anywhere."""
    head, *body = rows
    words = [max(map(len, name.split()), default=0) for name in head]
    most = [10**6] + [LONG_TEXT] * (len(head) - 1)  # the first column does not wrap
    cells = [max((min(len(row[i]), most[i]) for row in body), default=0) for i in range(len(head))]
    return sum(CHARACTER * max(pair) + GAP for pair in zip(words, cells, strict=True))


def write_page(path: str | Path, page: Page) -> None:
    """Write a page atomically."""
    write_text(path, page.render())


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings and lists as named lines, `outer, inner`; what is not known has none."""
    if value is None:
        return {}
    if isinstance(value, dict):
        out: dict[str, str] = {}
        for key, inner in value.items():
            out |= flat(inner, f"{prefix}, {key}" if prefix else str(key).replace("_", " "))
        return out
    if isinstance(value, (list, tuple)) and any(isinstance(v, dict) for v in value):
        numbered = {str(n): v for n, v in enumerate(value, 1)}
        return flat(value[0] if len(value) == 1 else numbered, prefix)
    if isinstance(value, (list, tuple)):
        return {prefix: ", ".join("–" if v is None else str(v) for v in value)}
    return {prefix: str(value)}
