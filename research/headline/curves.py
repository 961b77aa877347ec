"""Curves that are walked to one KL: a method is measured at its first budget, then a budget finer or coarser, until one is good
enough and the next is not, or it has no more. All curves of a text take their steps together, so the model reads it once a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from spectralquant.evaluation.match import matched
from spectralquant.results.quality import MethodRow


@dataclass(frozen=True)
class Budgets:
    """A rival as a user types it, with `{}` in the place of its budget; budgets, those of most bytes first; where to begin."""

    method: str
    budgets: tuple[float, ...]
    first: float

    def label(self, budget: float) -> str:
        """The method at a budget."""
        return self.method.format(f"{budget:g}")

    @property
    def name(self) -> str:
        """The method alone."""
        return self.method.partition(":")[0]


@dataclass
class Curve:
    """A method at some of its budgets. build: the method at a budget, and the bytes that requests share for it (None: nothing)."""

    name: str
    budgets: Sequence[float]
    first: float
    build: Callable[[float], tuple[Any, int | None]]
    rows: dict[float, MethodRow] = field(default_factory=dict)
    shared_bytes: dict[float, int | None] = field(default_factory=dict)

    def next(self, kl: float) -> float | None:
        """The budget to measure next; None where this KL lies between two neighbours, or there is no budget on that side."""
        if not self.rows:
            return self.first
        places = [self.budgets.index(budget) for budget in self.rows]
        good = [row.kl_nats <= kl for row in self.rows.values()]
        if any(good) and not all(good):
            return None
        place = max(places) + 1 if all(good) else min(places) - 1
        return self.budgets[place] if 0 <= place < len(self.budgets) else None

    def ratio(self, kl: float) -> float | None:
        """The payload ratio at this KL, or a bound of it; None: no budget is that good."""
        return matched(list(self.rows.values()), kl)[0].payload_ratio

    def nearest(self, kl: float) -> float:
        """The measured budget whose KL is nearest."""
        return min(self.rows, key=lambda budget: abs(math.log(max(self.rows[budget].kl_nats, 1e-9) / kl)))


def walk(curves: Iterable[Curve], kl: float, measure: Callable[[list[Any]], Sequence[MethodRow]]) -> None:
    """Measure curves step by step until this KL lies between two budgets of each, or it has no more on that side."""
    curves = list(curves)
    while wanted := [(curve, budget) for curve in curves if (budget := curve.next(kl)) is not None]:
        built = [curve.build(budget) for curve, budget in wanted]
        rows = measure([method for method, _ in built])
        for (curve, budget), (_, size), row in zip(wanted, built, rows, strict=True):
            curve.rows[budget], curve.shared_bytes[budget] = row, size


def at_kl(curves: Iterable[Curve], kl: float) -> dict[str, tuple[str, float]]:
    """By method, the name of its best curve at this KL and the budget nearest to it."""
    best: dict[str, Curve] = {}
    for curve in curves:
        family = curve.name.partition(":")[0]
        if family not in best or (curve.ratio(kl) or 0) > (best[family].ratio(kl) or 0):
            best[family] = curve
    return {family: (curve.name, curve.nearest(kl)) for family, curve in best.items()}
