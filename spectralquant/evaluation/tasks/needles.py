"""`needles`: four pass keys of four towns at four depths, one of which is asked for (as RULER's multi-key needles, Hsieh et
al. 2024, arXiv 2404.06654, section 3).
"""

from __future__ import annotations

from random import Random
from typing import Any

from spectralquant.evaluation.tasks.trial import Trial, digits, hidden

TOWNS = ("Paris", "London", "Madrid", "Berlin", "Vienna", "Lisbon", "Oslo", "Athens")
PLACES = (0.15, 0.35, 0.55, 0.75)
NEEDLE = "The pass key of {town} is {key}. Remember it. {key} is the pass key of {town}. "
QUESTION = "What is the pass key of {town}? The pass key of {town} is"


def make(tokenizer: Any, context: int, chooser: Random, turn: int) -> Trial:
    """See the package."""
    towns = chooser.sample(TOWNS, len(PLACES))
    keys = [digits(chooser) for _ in towns]
    pieces = [(d, NEEDLE.format(town=t, key=k)) for d, t, k in zip(PLACES, towns, keys, strict=True)]
    asked = turn % len(towns)
    return hidden(tokenizer, context, pieces, QUESTION.format(town=towns[asked]), f" {keys[asked]}")


TASK = make
