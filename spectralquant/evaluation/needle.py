"""Needle retrieval: a short pass key hidden in filler, asked for at the end (Mohtashami & Jaggi 2023, 2305.16300).

The key stands in a block that has long left the recent window when it is asked for, so it is read through the codec.
A trial counts when every token of the key is the model's first choice, which is what greedy decoding would print.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from spectralquant.evaluation.streaming import stream_window
from spectralquant.evaluation.tasks.needle import needle_trial
from spectralquant.methods.base import AnyMethod
from spectralquant.models.load import LoadedModel
from spectralquant.results.quality import NeedleRow

DIGITS = 5
DEPTHS = (0.1, 0.3, 0.5, 0.7)


@dataclass(frozen=True)
class NeedleResult:
    """Hits of one method (and of the exact model on the same prompts) out of n trials at one context length."""

    method: str
    options: dict[str, Any]
    context: int
    trials: int
    hits: int
    exact_hits: int

    def row(self) -> NeedleRow:
        return NeedleRow(
            method=self.method,
            options=self.options,
            context=self.context,
            needle_trials=self.trials,
            needle=self.hits / self.trials,
            needle_uncompressed=self.exact_hits / self.trials,
        )


def needle_retrieval(
    loaded: LoadedModel,
    methods: Sequence[AnyMethod],
    context: int,
    *,
    trials: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[NeedleResult]:
    """Run `trials` prompts of `context` tokens through all methods, depths taken in turn."""
    chooser = random.Random(seed)
    hits = [[0, 0] for _ in methods]
    for trial in range(trials):
        progress(trial, trials)
        key = "".join(chooser.choice("123456789") for _ in range(DIGITS))
        prompt = needle_trial(loaded.tokenizer, context, DEPTHS[trial % len(DEPTHS)], key)
        found = stream_window(loaded.model, loaded.geometry, prompt.ids, methods, answer=prompt.answer)
        for hit, totals in zip(hits, found, strict=True):
            hit[0] += totals.answered
            hit[1] += totals.exact_answered
    progress(trials, trials)
    return [NeedleResult(m.name, m.options, context, trials, h[0], h[1]) for m, h in zip(methods, hits, strict=True)]
