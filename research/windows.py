"""How a study cuts its text: windows to calibrate on, windows to choose on, windows to report; all different.

WikiText-2 raw test has 147 windows of 2,048 tokens of the built-in model: 0–79 calibrate, 80–111 are for development
(held-out trials of a calibration, and every choice of a design), 112–146 are reported. Any other text is cut in the same
shares. Whoever tries something scores the development part (`sq study --part-of-text development`); the report part is
scored for what is published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectralquant.errors import InputError, SourceError
from spectralquant.text.tokens import TokenText

CALIBRATION, DEVELOPMENT, ALL = 80, 32, 147
PARTS = ("report", "development")
HELD_OUT = 2


@dataclass(frozen=True)
class Split:
    """Windows int64 `[n, window]` of each part."""

    calibration: Tensor
    development: Tensor
    report: Tensor


def split_windows(text: TokenText, window: int) -> Split:
    """The parts of a text; see the module.

    Raises:
        SourceError: the text has no window.
    """
    every = text.windows(window)
    first = len(every) * CALIBRATION // ALL
    second = len(every) * (CALIBRATION + DEVELOPMENT) // ALL
    return Split(every[:first], every[first:second], every[second:])


def scored_windows(
    text: TokenText, steps: int, window: int, count: int, part: str = "report", scored: int | None = None
) -> Tensor:
    """The last `count` windows int64 `[count, scored]` of a part, where the first `steps` windows of `window` tokens calibrate.

    scored: tokens of a scored window (default: as those that calibrate). The two windows that follow those of the
    calibration are its held-out ones and are never reported.

    Raises:
        InputError: there is no such part. SourceError: the text is too short for all to be different.
    """
    if part not in PARTS:
        raise InputError(f"--part-of-text {part!r} is not one of {', '.join(PARTS)}.")
    scored = scored or window
    parts = split_windows(text, scored)
    calibrating = len(text.windows(window)) * CALIBRATION // ALL
    windows = getattr(parts, part)
    before = (steps + HELD_OUT) * text.body(window) if steps else 0
    first = len(parts.calibration) + (len(parts.development) if part == "report" else 0)
    start = (first + len(windows) - count) * text.body(scored)
    if steps > calibrating or count > len(windows) or before > start:
        raise SourceError(
            f"The text has {len(text.windows(window))} windows of {window} tokens, of which the first {calibrating} may "
            f"calibrate ({steps} and {HELD_OUT} held-out ones asked for), and {len(windows)} of {scored} tokens in its "
            f"{part} part ({count} asked for). Give more text, or smaller --steps, --windows or --window."
        )
    return windows[len(windows) - count :]


def require_unseen(text: Any, sources: Any, count: int, window: int) -> None:
    """The last `count` windows of a text (`MixedText`) hold nothing that a profile was calibrated on.

    Raises:
        InputError: they do, or the text has fewer.
    """
    every = len(text.windows(window))
    if count > every:
        raise InputError(
            f"The text has {every} windows of {window} tokens, and {count} are to be scored. Give more text (--data), or fewer --windows."
        )
    seen = text.seen(sources)
    if (every - count) * text.body(window) < seen:
        raise InputError(
            f"The profile was calibrated on the first {seen:,} tokens of this text, and {count} windows of {window} to be "
            "scored reach into them. Give other text (--data), or fewer --windows."
        )
