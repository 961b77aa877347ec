"""`total_variation`: half the sum of absolute differences of probabilities, 0 to 1.

It is the least share of sampled tokens that differ between two models which share their randomness as well as can be
(Levin, Peres, Wilmer, *Markov Chains and Mixing Times*, proposition 4.7).
"""

from __future__ import annotations

from torch import Tensor


def total_variation(exact: Tensor, coded: Tensor, targets: Tensor) -> Tensor:
    """A value a token, `[T]`, of log-probabilities `[T, V]`."""
    return (exact.exp() - coded.exp()).abs().sum(-1) / 2


SCORE = total_variation
