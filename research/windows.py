"""Which windows a study scores: the last ones, never any that calibration has seen."""

from __future__ import annotations

from torch import Tensor

from spectralquant.errors import SourceError
from spectralquant.text.tokens import TokenText

HELD_OUT = 2


def scored_windows(text: TokenText, steps: int, window: int, count: int) -> Tensor:
    """The last `count` windows int64 `[count, window]`, after the calibration windows and the two held-out ones.

    Raises:
        SourceError: the text is too short for them to be disjoint.
    """
    every = text.windows(window)
    need = steps + HELD_OUT + count
    if len(every) < need:
        raise SourceError(
            f"The text has {len(every)} windows of {window} tokens; {steps} to calibrate, {HELD_OUT} held out and "
            f"{count} to score, all different, need {need}. Give more text, or smaller --steps, --windows or --window."
        )
    return every[-count:]
