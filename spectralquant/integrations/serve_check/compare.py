"""Two engines' texts against each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """kl_nats: mean of KL(exact ‖ restored) over `positions` tokens with the same history. top1: share of equal choices.

    same_text: share of prompts with equal texts.
    """

    kl_nats: float
    top1: float
    same_text: float
    positions: int


def compare(exact: np.ndarray, restored: np.ndarray, tokens: list[list[int]], others: list[list[int]]) -> Difference:
    """Log-probabilities `[prompts, new, vocabulary]` and texts of the same prompts.

    After the first token that differs the texts have another history: positions beyond it are left out.
    """
    kl: list[float] = []
    equal: list[bool] = []
    for row, (one, other) in enumerate(zip(tokens, others, strict=True)):
        for column, (a, b) in enumerate(zip(one, other, strict=True)):
            p, q = (x[row, column].astype(np.float64) for x in (exact, restored))
            there = np.exp(p) > 0
            kl.append(float((np.exp(p[there]) * (p[there] - q[there])).sum()))
            equal.append(a == b)
            if a != b:
                break
    same = [a == b for a, b in zip(tokens, others, strict=True)]
    return Difference(float(np.mean(kl)), float(np.mean(equal)), float(np.mean(same)), len(kl))
