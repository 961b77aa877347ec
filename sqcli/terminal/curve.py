"""Sparklines for spectra: log scale, one character a component."""

from __future__ import annotations

import numpy as np
from rich.text import Text

BLOCKS = " ▁▂▃▄▅▆▇█"


def sparkline(values: np.ndarray, low: float, high: float, width: int, style: str = "cyan") -> Text:
    """`values` resampled to at most `width` characters between `low` and `high`."""
    if len(values) > width:
        values = np.interp(np.linspace(0, len(values) - 1, width), np.arange(len(values)), values)
    span = max(high - low, 1e-12)
    index = np.clip(((values - low) / span * (len(BLOCKS) - 1)).round().astype(int), 0, len(BLOCKS) - 1)
    return Text("".join(BLOCKS[i] for i in index), style=style)
