"""Terminal heatmaps, layers across and heads down, readable in colour, without colour and when piped."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.style import Style
from rich.text import Text

SHADES = "·░▒▓█"
RAMP = ((38, 35, 72), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def ramp(x: float) -> tuple[int, int, int]:
    """Colour of x in 0…1 on a dark-to-bright ramp that also reads in grey."""
    x = min(max(x, 0.0), 1.0) * (len(RAMP) - 1)
    i = min(int(x), len(RAMP) - 2)
    return tuple(round(a + (b - a) * (x - i)) for a, b in zip(RAMP[i], RAMP[i + 1], strict=True))


def heatmap(
    title: str, grid: np.ndarray, unit: str, width: int, form: str, limits: tuple[float, float] | None = None
) -> RenderableType:
    """`grid: [layers, heads]` as rows of heads; where the layers do not fit, neighbours are averaged. form: of the ends."""
    layers, heads = grid.shape
    label = 9
    cell = 2 if label + 2 * layers <= width else 1
    per_cell = max(1, -(-layers // (width - label)))
    low, high = limits or (float(grid.min()), float(grid.max()))
    lines = [Text.assemble((title, "bold"), f"  {low:{form}} ", _swatch(), f" {high:{form}} {unit}")]
    for head in range(heads):
        line = Text(f"  head {head:<2}")
        for at in range(0, layers, per_cell):
            line.append_text(_cell(float(grid[at : at + per_cell, head].mean()), low, high, cell))
        lines.append(line)
    ticks = [" "] * (cell * -(-layers // per_cell) + 4)
    for at in range(0, layers, 5 * per_cell if cell == 2 else 10 * per_cell):
        for i, character in enumerate(str(at)):
            ticks[at // per_cell * cell + i] = character
    lines.append(Text("  layer  " + "".join(ticks).rstrip(), style="dim"))
    return Group(*lines)


def _cell(value: float, low: float, high: float, width: int) -> Text:
    x = 0.0 if high <= low else (value - low) / (high - low)
    red, green, blue = ramp(x)
    shade = SHADES[min(int(x * len(SHADES)), len(SHADES) - 1)]
    return Text(shade * width, style=Style(color=f"rgb({red},{green},{blue})"))


def _swatch() -> Text:
    out = Text()
    for i in range(len(SHADES)):
        out.append_text(_cell(i / (len(SHADES) - 1), 0, 1, 1))
    return out
