"""One self-contained HTML page: no scripts, no fonts or files fetched, light and dark, desktop and phone."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from spectralquant.files import write_text

STYLE = """
:root{--bg:#fbfbf9;--fg:#1c1d21;--dim:#666a73;--line:#dcdcd6;--card:#fff;--c1:#2a6fb0;--c2:#b0472a;--c3:#7fb2dd;
--c4:#e0a48f;--c5:#2f8f6b;--c6:#8b5fbf}
@media (prefers-color-scheme:dark){:root{--bg:#15161a;--fg:#e8e8e4;--dim:#9a9ea8;--line:#33353d;--card:#1d1f25;
--c1:#6db3f2;--c2:#f2906d;--c3:#3f6f9c;--c4:#9c5b45;--c5:#5fcf9f;--c6:#c39af0}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:860px;margin:0 auto;padding:24px 16px 64px}h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:0 0 12px}
p.sub{color:var(--dim);margin:4px 0 24px}section{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:16px;margin:0 0 16px}.wide{overflow-x:auto}svg{width:100%;min-width:520px;height:auto;display:block}
svg text{fill:var(--dim);font:11px system-ui,sans-serif}.grid{stroke:var(--line)}
table{border-collapse:collapse;font-size:.92rem;width:100%}th,td{text-align:right;padding:6px 10px;
border-bottom:1px solid var(--line);white-space:nowrap}th:first-child,td:first-child{text-align:left}
th{color:var(--dim);font-weight:600}dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:0;
font-size:.92rem}dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
@media (max-width:560px){dl{grid-template-columns:1fr}dt{margin-top:6px}}
"""


class Page:
    """A page of sections, built in order."""

    def __init__(self, title: str, subtitle: str) -> None:
        self.title, self.subtitle = title, subtitle
        self._sections: list[str] = []

    def figure(self, title: str, svg: str) -> None:
        """A chart."""
        self._add(title, f'<div class="wide">{svg}</div>')

    def table(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        """A table; the first row is its head."""
        head = "".join(f"<th>{html.escape(c)}</th>" for c in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows[1:])
        self._add(title, f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')

    def facts(self, title: str, facts: dict[str, str]) -> None:
        """Named facts."""
        items = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
        self._add(title, f"<dl>{items}</dl>")

    def _add(self, title: str, body: str) -> None:
        self._sections.append(f"<section><h2>{html.escape(title)}</h2>{body}</section>")

    def render(self) -> str:
        """The whole document."""
        title, subtitle = html.escape(self.title), html.escape(self.subtitle)
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<style>{STYLE}</style></head><body><main><h1>{title}</h1><p class="sub">{subtitle}</p>'
            f"{''.join(self._sections)}</main></body></html>\n"
        )


def write_page(path: str | Path, page: Page) -> None:
    """Write a page atomically."""
    write_text(path, page.render())
