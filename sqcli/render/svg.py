"""Inline SVG charts; colours come from the page's CSS variables, so they follow light and dark."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

import numpy as np

from sqcli.render.heatmap import ramp

BANDS = ("var(--c1)", "var(--c3)", "var(--c3)", "var(--c2)", "var(--c4)", "var(--c4)")
SERIES = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)")


def heatmap_svg(grid: np.ndarray, across: str, down: str, limits: tuple[float, float] | None = None) -> str:
    """`grid: [across, down]` as coloured cells with a title each and a scale below."""
    columns, rows = grid.shape
    low, high = limits or (float(grid.min()), float(grid.max()))
    cell = max(6, min(24, 720 // max(columns, 1)))
    height = max(cell, 14)
    width, left = 60 + columns * cell, 56
    parts = []
    for row in range(rows):
        parts.append(_text(left - 6, row * height + height * 0.72, f"{down} {row}", "end"))
        for column in range(columns):
            value = float(grid[column, row])
            red, green, blue = ramp(0.0 if high <= low else (value - low) / (high - low))
            parts.append(
                f'<rect x="{left + column * cell}" y="{row * height}" width="{cell - 1}" height="{height - 1}" '
                f'fill="rgb({red},{green},{blue})"><title>{across} {column}, {down} {row}: {value:.4g}</title></rect>'
            )
    base = rows * height + 14
    for column in range(0, columns, 5):
        parts.append(_text(left + column * cell + cell / 2, base, str(column), "middle"))
    for i in range(60):
        red, green, blue = ramp(i / 59)
        parts.append(
            f'<rect x="{left + i * 3}" y="{base + 10}" width="3" height="8" fill="rgb({red},{green},{blue})"/>'
        )
    parts.append(_text(left, base + 32, f"{low:.3g}", "start") + _text(left + 180, base + 32, f"{high:.3g}", "end"))
    return _svg(max(width, 260), base + 38, parts)


def line_chart(series: dict[str, Sequence[float]], across: str, up: str, colours: Sequence[str] = SERIES) -> str:
    """Lines over 0…n−1 with axes, ticks and a legend."""
    xs = max(len(v) for v in series.values())
    points = {name: list(enumerate(values)) for name, values in series.items()}
    return xy_chart(points, across, up, markers=False, x_range=(0, max(xs - 1, 1)), colours=colours)


def xy_chart(
    series: dict[str, Sequence[tuple[float, float]]],
    across: str,
    up: str,
    *,
    markers: bool = True,
    x_range: tuple[float, float] | None = None,
    colours: Sequence[str] = SERIES,
    tick_x: Callable[[float], float] = float,
    tick_y: Callable[[float], float] = float,
) -> str:
    """Lines through (x, y) points; `tick_x`, `tick_y` turn coordinates into what is written (for logarithmic axes).

    When there are more series than colours, the later ones are dashed with square markers.
    """
    left, top, width, height = 74, 10, 602, 260
    all_x = [x for s in series.values() for x, _ in s]
    all_y = [y for s in series.values() for _, y in s]
    x0, x1 = x_range or (min(all_x), max(all_x))
    y0, y1 = min(all_y), max(all_y)
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + 1)
    px = lambda x: left + (x - x0) / (x1 - x0) * width  # noqa: E731
    py = lambda y: top + height - (y - y0) / (y1 - y0) * height  # noqa: E731
    parts = []
    for i in range(5):
        y = y0 + (y1 - y0) * i / 4
        x = x0 + (x1 - x0) * i / 4
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{py(y):.1f}" y2="{py(y):.1f}" class="grid"/>')
        parts.append(
            _text(left - 6, py(y) + 4, _tick(tick_y(y)), "end")
            + _text(px(x), top + height + 16, _tick(tick_x(x)), "middle")
        )
    for i, (name, values) in enumerate(series.items()):
        colour = colours[i % len(colours)]
        again = i >= len(colours)
        dash = ' stroke-dasharray="5 4"' if again else ""
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in values)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if markers:
            for x, y in values:
                title = f"<title>{html.escape(name)}: {tick_x(x):.4g}, {tick_y(y):.4g}</title>"
                if again:
                    place = f'x="{px(x) - 4:.1f}" y="{py(y) - 4:.1f}" width="8" height="8"'
                    parts.append(f'<rect {place} fill="{colour}">{title}</rect>')
                else:
                    parts.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="4" fill="{colour}">{title}</circle>')
        row, column = divmod(i, 3)
        at = (left + column * 210, top + height + 56 + 18 * row)
        line = f'x1="{at[0]}" x2="{at[0] + 20}" y1="{at[1] - 4}" y2="{at[1] - 4}"'
        parts.append(f'<line {line} stroke="{colour}" stroke-width="3"{dash}/>')
        parts.append(_text(at[0] + 26, at[1], name, "start"))
    parts.append(_text(left + width / 2, top + height + 34, across, "middle"))
    parts.append(
        f'<text transform="translate(12 {top + height / 2}) rotate(-90)" text-anchor="middle">{html.escape(up)}</text>'
    )
    return _svg(left + width + 26, top + height + 62 + 18 * ((len(series) - 1) // 3), parts)


def bar_chart(edges: Sequence[float], counts: dict[str, Sequence[int]], across: str, up: str) -> str:
    """Grouped bars over bins."""
    left, top, width, height = 56, 10, 620, 200
    bins = len(edges) - 1
    highest = max(max(c) for c in counts.values()) or 1
    slot = width / bins
    bar = slot * 0.8 / len(counts)
    parts = [f'<line x1="{left}" x2="{left + width}" y1="{top + height}" y2="{top + height}" class="grid"/>']
    for i in range(bins):
        for k, (name, values) in enumerate(counts.items()):
            tall = values[i] / highest * height
            parts.append(
                f'<rect x="{left + i * slot + slot * 0.1 + k * bar:.1f}" y="{top + height - tall:.1f}" width="{bar:.1f}" '
                f'height="{tall:.1f}" fill="{SERIES[k]}"><title>{html.escape(name)}: {values[i]}</title></rect>'
            )
        parts.append(_text(left + (i + 0.5) * slot, top + height + 16, f"{edges[i]:.2g}–{edges[i + 1]:.2g}", "middle"))
    parts += [_text(left - 6, top + 8, str(highest), "end"), _text(left - 6, top + height, "0", "end")]
    for k, name in enumerate(counts):
        parts.append(f'<rect x="{left + k * 120}" y="{top + height + 43}" width="12" height="10" fill="{SERIES[k]}"/>')
        parts.append(_text(left + 18 + k * 120, top + height + 52, name, "start"))
    parts.append(_text(left + width / 2, top + height + 34, f"{across} (bars: {up})", "middle"))
    return _svg(left + width + 16, top + height + 60, parts)


def _tick(value: float) -> str:
    """A number beside an axis: three digits, thousands written out."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(width: float, height: float, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img">{"".join(parts)}</svg>'
    )
