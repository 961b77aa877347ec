"""Curves in the terminal: sparklines, and plots (plotext) whose axes are both logarithmic, with ticks at 1, 2 and 5 of every power of ten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from rich.text import Text

COLOURS = ("cyan", "magenta", "green", "yellow", "red", "blue", "gray", "orange", "white")
MOST_TICKS = 7
BLOCKS = " ▁▂▃▄▅▆▇█"
DIGITS = ((1, 2, 5), (1, 3), (1,))


def log_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, *, width: int, height: int
) -> Text:
    """Points of named curves as letters, and what the letters stand for; coordinates are positive.

    plotext gets logarithms on linear axes: its own logarithmic axes choose ticks like 3.5 and 19.3.
    """
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(width, height)
    points = [point for curve in curves.values() for point in curve]
    for axis, place, label in (("x", 0, x_label), ("y", 1, y_label)):
        values = [point[place] for point in points]
        ticks = log_ticks(min(values), max(values))
        low, high = min(*values, *ticks), max(*values, *ticks)
        room = 0.02 * math.log10(high / low) if high > low else 0.1
        ruler = figure.ruler(axis)
        ruler.lim(math.log10(low) - room, math.log10(high) + room)
        ruler.ticks([math.log10(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
        figure.label(label, axis)
    for number, curve in enumerate(curves.values()):
        marker = plotext.colorize(letter(number), COLOURS[number % len(COLOURS)])
        figure.draw(figure.signal([math.log10(x) for x, _ in curve], [math.log10(y) for _, y in curve], marker=marker))
    text = Text.from_ansi(figure.build().string())
    figure.clear()
    return text.append_text(legend(list(curves), width))


def legend(names: Sequence[str], width: int) -> Text:
    """`A first  B second …`, in lines of at most `width` characters."""
    text, used = Text("\n"), 0
    for number, name in enumerate(names):
        entry = len(name) + 4
        if used and used + entry > width:
            text.append("\n")
            used = 0
        text.append(f"  {letter(number)} ", style=COLOURS[number % len(COLOURS)].replace("gray", "bright_black"))
        text.append(name)
        used += entry
    return text


def letter(number: int) -> str:
    """A, B, …, Z, A again."""
    return chr(ord("A") + number % 26)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from below `low` to above `high`, or within them where those are enough; few enough to read."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in DIGITS:
        every = [digit * 10.0**power for power in range(first - 1, last + 1) for digit in digits]
        inside = [tick for tick in every if low <= tick <= high]
        if len(inside) < 2:
            inside = [
                max(t for t in every if t <= low),
                *inside,
                min((t for t in every if t >= high), default=10.0**last),
            ]
        if len(set(inside)) <= MOST_TICKS:
            return sorted(set(inside))
    step = -(-(last - first + 1) // MOST_TICKS)
    return [10.0**power for power in range(first, last + 1, step)]


def sparkline(values: np.ndarray, low: float, high: float, width: int, style: str = "cyan") -> Text:
    """`values` resampled to at most `width` characters between `low` and `high`."""
    if len(values) > width:
        values = np.interp(np.linspace(0, len(values) - 1, width), np.arange(len(values)), values)
    span = max(high - low, 1e-12)
    index = np.clip(((values - low) / span * (len(BLOCKS) - 1)).round().astype(int), 0, len(BLOCKS) - 1)
    return Text("".join(BLOCKS[i] for i in index), style=style)
