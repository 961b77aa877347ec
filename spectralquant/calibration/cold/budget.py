"""`--profile-budget`: trade the size of the bases against the rate.

Shorter spans and fewer components make a smaller profile and a larger cache. Every span that the sums can serve is
tried with and without the token predictor, cut to the components of largest variance that fit, and judged by bits per
token plus what its dropped variance is worth in bits: near step Δ a bit buys Δ²·ln 2/6 of distortion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spectralquant.calibration.basis.two_level import FINE_OUTER
from spectralquant.calibration.cold.fit import ColdFitter, ColdReport
from spectralquant.calibration.split import SplitColdFitter, parts_of
from spectralquant.errors import InputError
from spectralquant.profile.tensors import ColdTier, flatten

MOST_BYTES, LEAST_BYTES = 400_000_000, 16_000_000
LEAST_SHARE = 10
USUAL_WIDTH = 32_768
TABLE_BYTES = 60_000
ROW_BYTES = 40  # of a component beside its outer rows: scales, gains, centroid, tables' choice


@dataclass(frozen=True)
class BudgetChoice:
    """The fitter to go on with, and what it was judged by: span width, predictor, cost in bits per token."""

    fitter: ColdFitter | SplitColdFitter
    span: int
    predict: bool
    cost: float


def tier_bytes(tier: ColdTier) -> int:
    """Bytes of a tier's tensors in a profile."""
    return sum(t.numel() * t.element_size() for t in flatten("cold", tier).values())


def default_budget(weight_bytes: int, width: int) -> int:
    """Bytes of a product-form profile at most: a quarter of the model's own, no less than 16 MB, and no more than 400 MB; more
    of a cache of more than 32,768 coordinates, as much as it is wider.
    """
    return min(MOST_BYTES * max(width, USUAL_WIDTH) // USUAL_WIDTH, max(LEAST_BYTES, weight_bytes // 4))


def product_form_bytes(parts: Sequence[ColdFitter]) -> tuple[int, int] | None:
    """Bytes of product forms whatever their ranks, and of one more component at most; None where a basis is dense."""
    if not all(part.two_level for part in parts):
        return None
    fixed, row = 0, 0
    for part in parts:
        for kind, bases in enumerate(part.bases):
            inner = [b.factors.inner_analysis for b in bases]
            fixed += sum(4 * len(rows) * rows.width for rows in inner)  # 16 bits, analysis and synthesis
            fixed += sum(2 * FINE_OUTER * len(rows) for rows in inner)
            row = max(row, *(2 * len(rows) + ROW_BYTES for rows in inner))
            predictor = part.predictors[kind]
            fixed += part.geometry.width * 8  # mean, scales of the predictor
            fixed += 0 if predictor is None else predictor.weight.numel()
        fixed += (
            0 if part.features is None or part.features.projection is None else 4 * part.features.projection.numel()
        )
    return fixed + TABLE_BYTES * len(parts), row


def keep_within(fitter: ColdFitter | SplitColdFitter, budget: int, ratio: float) -> None:
    """Cut ranks until product forms take `budget` bytes, but to no less than a tenth; dense bases stay as they are."""
    sizes = product_form_bytes(_fitters(fitter))
    if sizes is None:
        return
    rank = sum(len(v) for v in fitter.variance)
    limit = max(rank // LEAST_SHARE, (budget - sizes[0]) // sizes[1])
    if limit < rank:
        fitter.limit_rank(fitter.step_for_ratio(ratio), limit)


def fit_to_budget(
    make: Callable[[int, bool], ColdFitter | SplitColdFitter],
    spans: list[int],
    predict: bool,
    budget: int,
    ratio: float,
) -> BudgetChoice:
    """Choose span, predictor and rank limit for a profile of at most `budget` bytes at payload ratio `ratio`.

    `make(span, predict)` builds a fitter; `spans` are the widths to try, largest first.

    Raises:
        InputError: even the smallest candidate does not fit; the message says what it would take.
    """
    best: BudgetChoice | None = None
    smallest = math.inf
    for span in spans:
        for with_predictor in (True, False) if predict else (False,):
            fitter = make(span, with_predictor)
            step = fitter.step_for_ratio(ratio)
            tier, report = fitter.fit(step, stride=4)
            size = tier_bytes(tier)
            rank = sum(len(part.key_centroid) + len(part.value_centroid) for part in parts_of(tier))
            per_component = 4 * span + 3 * 4 + 4 + 9
            fixed = size - rank * per_component
            if (small := product_form_bytes(_fitters(fitter))) is not None:
                fixed, per_component = small
            limit = (budget - fixed) // per_component
            smallest = min(smallest, fixed + per_component * max(2, rank // 10))
            if limit < max(2, rank // 10):
                continue
            if limit < rank:
                fitter.limit_rank(step, int(limit))
                step = fitter.step_for_ratio(ratio)
                _, report = fitter.fit(step, stride=4)
            cost = _cost(fitter, step, report)
            if best is None or cost < best.cost:
                best = BudgetChoice(fitter, span, with_predictor, cost)
    if best is None:
        raise InputError(
            f"--profile-budget: {budget:,} bytes are too few; the smallest useful profile of this model takes about "
            f"{int(smallest):,}. Allow more, or use --span layer --predict none."
        )
    return best


def _fitters(fitter: ColdFitter | SplitColdFitter) -> Sequence[ColdFitter]:
    return fitter.fitters if isinstance(fitter, SplitColdFitter) else [fitter]


def _cost(fitter: ColdFitter, step: float, report: ColdReport) -> float:
    distortion = 0.0
    for kind in range(2):
        kept = fitter.kept(kind, step)
        variance = fitter.variance[kind].double()
        distortion += len(kept) * step**2 / 12 + float(variance.sum() - variance[kept].sum())
    return report.bits_per_token + distortion / (step**2 * math.log(2) / 6)
