"""`key_value`: a list of keys and values fills the context, one value is asked for (Liu et al. 2023, "Lost in the middle",
arXiv 2307.03172, section 3).
"""

from __future__ import annotations

from random import Random
from typing import Any

from spectralquant.evaluation.tasks.trial import DEPTHS, LEAST_FILLER, Trial, digits, hidden

LINE = "{key}: {value}\n"
LETTERS = "bcdfghjkmnpqrstvwxz"
PROBE_LINES = 32


def make(tokenizer: Any, context: int, chooser: Random, turn: int) -> Trial:
    """See the package."""
    pair = lambda: ("".join(chooser.choice(LETTERS) for _ in range(4)), digits(chooser, 3))  # noqa: E731
    probe = "".join(LINE.format(key=k, value=v) for k, v in (pair() for _ in range(PROBE_LINES)))
    width = len(tokenizer(probe, add_special_tokens=False).input_ids) / PROBE_LINES
    count = max(2, int((context - 2 * LEAST_FILLER) / (width * 1.1)))
    pairs = list(dict(pair() for _ in range(count)).items())
    key, value = pairs[int(DEPTHS[turn % len(DEPTHS)] * len(pairs))]
    lines = "".join(LINE.format(key=k, value=v) for k, v in pairs)
    return hidden(tokenizer, context, [(1.0, f"\n{lines}")], f"\nThe value of {key} again:\n{key}:", f" {value}")


TASK = make
