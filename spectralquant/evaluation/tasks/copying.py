"""`copying`: a passage of random words stands far back, begins again at the end, and is to be gone on with word for word."""

from __future__ import annotations

from random import Random
from typing import Any

from spectralquant.evaluation.tasks.trial import DEPTHS, Trial, hidden

WORDS = tuple(
    [
        "apple",
        "river",
        "stone",
        "cloud",
        "table",
        "green",
        "paper",
        "light",
        "horse",
        "music",
        "winter",
        "garden",
        "silver",
        "bridge",
        "window",
        "coffee",
        "mountain",
        "letter",
        "yellow",
        "forest",
        "summer",
        "kitchen",
        "orange",
        "pencil",
        "doctor",
        "village",
        "island",
        "button",
        "market",
        "shadow",
    ]
)
PASSAGE, SHOWN = 24, 18


def make(tokenizer: Any, context: int, chooser: Random, turn: int) -> Trial:
    """See the package."""
    words = [chooser.choice(WORDS) for _ in range(PASSAGE)]
    passage, shown = " ".join(words), " ".join(words[:SHOWN])
    pieces = [(DEPTHS[turn % len(DEPTHS)], f"List: {passage}.\n")]
    return hidden(tokenizer, context, pieces, f"\nList: {shown}", " " + " ".join(words[SHOWN:]))


TASK = make
