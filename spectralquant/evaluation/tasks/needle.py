"""`needle`: one pass key, hidden in filler at several depths (Mohtashami & Jaggi 2023, arXiv 2305.16300)."""

from __future__ import annotations

from random import Random
from typing import Any

from spectralquant.evaluation.tasks.trial import DEPTHS, Trial, digits, hidden

NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key. "
QUESTION = "What is the pass key? The pass key is"


def needle_trial(tokenizer: Any, context: int, depth: float, key: str) -> Trial:
    """Filler, the needle at `depth` (0 to 1), filler, the question, the key.

    Raises:
        InputError: no room for filler.
    """
    return hidden(tokenizer, context, [(depth, NEEDLE.format(key=key))], QUESTION, f" {key}")


def make(tokenizer: Any, context: int, chooser: Random, turn: int) -> Trial:
    """See the package."""
    return needle_trial(tokenizer, context, DEPTHS[turn % len(DEPTHS)], digits(chooser))


TASK = make
