"""Charts as inline SVG, drawn by matplotlib.

Colours are CSS variables of the page, so charts follow light and dark. Text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

# matplotlib wants real colours: each stands for a variable of the page and is replaced in the SVG.
VARIABLES = {f"#0000{i:02x}": f"var(--c{i})" for i in range(1, 9)} | {
    "#0000f0": "var(--dim)",
    "#0000f1": "var(--line)",
    "#0000f2": "var(--card)",
}
SERIES = tuple(VARIABLES)[:6]
BANDS = tuple(f"#0000{i:02x}" for i in (1, 7, 7, 2, 8, 8))
TEXT, GRID, CARD = "#0000f0", "#0000f1", "#0000f2"
MARKERS = "os^Dv"
WIDTH, HEIGHT = 4.8, 3.4
TICKS = (1, 2, 5)


@dataclass(frozen=True)
class Chart:
    """An SVG element and what its colours mean: name, CSS colour, dashed or not."""

    svg: str
    legend: list[dict[str, object]] = field(default_factory=list)


def xy_chart(
    series: dict[str, Sequence[tuple[float, float]]],
    across: str,
    up: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = True,
    colours: Sequence[str] = SERIES,
) -> Chart:
    """Lines through (x, y) points, linear or logarithmic; beyond the colours, lines are dashed."""
    legend = []
    with _axes(across, up) as (figure, axes):
        for i, (name, points) in enumerate(series.items()):
            colour, again = colours[i % len(colours)], i >= len(colours)
            marker = MARKERS[i // len(colours) % len(MARKERS)] if markers else None
            style = (0, (5, 3)) if again else "-"
            axes.plot(
                *zip(*points, strict=True), color=colour, linestyle=style, marker=marker, markersize=5, linewidth=2
            )
            legend.append({"name": name, "colour": VARIABLES[colour], "dashed": again})
        for axis, logarithmic in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
            values = [p[0 if axis is axes.xaxis else 1] for points in series.values() for p in points]
            if logarithmic:
                set_scale = axes.set_xscale if axis is axes.xaxis else axes.set_yscale
                set_scale("log")
                low, high = min(values), max(values)
                if high < 8 * low:
                    axis.set_major_locator(FixedLocator(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)))
                else:
                    axis.set_major_locator(LogLocator(subs=(1,) if high > 300 * low else TICKS, numticks=12))
                axis.set_minor_locator(NullLocator())
            else:
                whole = all(float(v).is_integer() for v in values)
                axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=whole))
            axis.set_major_formatter(FuncFormatter(lambda v, _: tick(v)))
        return Chart(_svg(figure), legend)


def line_chart(series: dict[str, Sequence[float]], across: str, up: str, colours: Sequence[str] = SERIES) -> Chart:
    """Lines over 0 … n − 1."""
    return xy_chart({k: list(enumerate(v)) for k, v in series.items()}, across, up, markers=False, colours=colours)


def bar_chart(
    edges: Sequence[float], counts: dict[str, Sequence[int]], across: str, up: str, form: Callable[[float], str]
) -> Chart:
    """Grouped bars over bins; form: the text of an edge."""
    legend = []
    with _axes(across, up) as (figure, axes):
        centres, slot = np.arange(len(edges) - 1), 0.8 / len(counts)
        for i, (name, values) in enumerate(counts.items()):
            axes.bar(centres + (i - (len(counts) - 1) / 2) * slot, values, slot * 0.92, color=SERIES[i])
            legend.append({"name": name, "colour": VARIABLES[SERIES[i]], "dashed": False})
        axes.set_xticks(np.arange(len(edges)) - 0.5, [form(e) for e in edges])
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        return Chart(_svg(figure), legend)


def heatmap_chart(
    grid: np.ndarray, across: str, down: str, limits: tuple[float, float] | None = None, unit: str = ""
) -> Chart:
    """`grid: [across, down]` as coloured cells with a scale."""
    columns, rows = grid.shape
    low, high = limits or (float(grid.min()), float(grid.max()))
    height = min(max(1.5, 0.9 + 0.22 * rows), 7.0)
    with _axes(across, down, height=height, grid=False) as (figure, axes):
        image = axes.pcolormesh(grid.T, cmap="viridis", vmin=low, vmax=max(high, low + 1e-12))
        axes.invert_yaxis()
        for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
            step = next((s for s in (1, 2, 5, 10, 20, 50) if count / s <= 10), 100)
            axis.set_ticks(np.arange(0, count, step) + 0.5, [str(i) for i in range(0, count, step)])
        scale = figure.colorbar(image, ax=axes, pad=0.02, label=unit)
        scale.outline.set_visible(False)
        scale.ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        return Chart(_svg(figure))


def tick(value: float) -> str:
    """A number beside an axis: thousands and millions shortened, no trailing zeros."""
    for limit, letter in ((1e6, "M"), (1e3, "K")):
        if abs(value) >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:g}"


@contextmanager
def _axes(across: str, up: str, *, height: float = HEIGHT, grid: bool = True) -> Iterator[tuple[Figure, Axes]]:
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "spectralquant",
        "font.size": 9,
        "grid.linewidth": 0.6,
        **{f"{name}.color": TEXT for name in ("text", "xtick", "ytick")},
        **{"axes.labelcolor": TEXT, "axes.edgecolor": GRID, "grid.color": GRID, "axes.facecolor": "none"},
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.grid(grid)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        yield figure, axes


def _svg(figure: Figure) -> str:
    """The SVG element alone, with the page's variables in place of colours."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns(?::\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r"#0000[0f][0-9a-f]", lambda m: VARIABLES.get(m[0], m[0]), svg).strip()
