"""pass, regression or inconclusive, metric by metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from spectralquant.gate.limits import Limit, Limits
from spectralquant.gate.metrics import Metric
from spectralquant.gate.statistics import (
    CONFIDENCE,
    ENOUGH_SAMPLES,
    LEAST_SAMPLES,
    MOST_VARIATION,
    RESAMPLES,
    compare_times,
    holm,
)
from spectralquant.results.checks import VerdictRow

PASS, REGRESSION, INCONCLUSIVE, SKIPPED = "pass", "regression", "inconclusive", "skipped"
NEW = "not compared"


@dataclass(frozen=True)
class Verdict:
    """One metric. change: absolute for figures, relative for times. p: of a slowdown beyond the limit (times alone)."""

    metric: str
    verdict: str
    why: str
    baseline: float | None = None
    now: float | None = None
    change: float | None = None
    limit: float | None = None
    p: float | None = None

    @property
    def excess(self) -> float:
        """How far beyond its limit, for sorting the worst first."""
        if self.change is None or not self.limit:
            return float("inf")
        return abs(self.change) / self.limit


def figure_verdict(name: str, before: float, now: float, limit: Limit) -> Verdict:
    """A deterministic figure: no statistics."""
    change, allowed = now - before, limit.allowed(before)
    bad = {"up": change, "down": -change, "both": abs(change)}[limit.worse]
    # A last digit in floating point is no change.
    regressed = not bad <= allowed + 1e-9 * max(abs(before), abs(now))
    direction = {"up": "rose", "down": "fell", "both": "moved"}[limit.worse]
    why = f"{direction} by {bad:.3g}, allowed {allowed:.3g}" if regressed else "within its limit"
    return Verdict(name, REGRESSION if regressed else PASS, why, before, now, change, allowed)


def timing_verdict(
    before: Sequence[float],
    now: Sequence[float],
    limit: float,
    *,
    paired: bool,
    name: str = "time",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Verdict:
    """Times, or ratios of times. A single metric; several need `decide`, which corrects for their number."""
    fewest = min(len(before), len(now))
    if fewest < LEAST_SAMPLES:
        why = f"{fewest} samples a side; at least {LEAST_SAMPLES} are needed, {ENOUGH_SAMPLES} recommended"
        return Verdict(name, INCONCLUSIVE, why, limit=limit)
    comparison = compare_times(before, now, limit, paired=paired, seed=seed, resamples=resamples)
    middle = sorted(before)[len(before) // 2], sorted(now)[len(now) // 2]
    verdict = Verdict(name, PASS, "within its limit", *map(float, middle), comparison.ratio - 1, limit, comparison.p)
    if comparison.variation > MOST_VARIATION:
        why = f"times vary by {100 * comparison.variation:.0f} % (over {100 * MOST_VARIATION:.0f} %): measure on a quieter machine"
        return replace(verdict, verdict=INCONCLUSIVE, why=why, p=None)
    if comparison.p <= 1 - CONFIDENCE:
        why = f"slower by at least {100 * (comparison.bound - 1):.1f} % (95 % sure), allowed {100 * limit:.1f} %"
        return replace(verdict, verdict=REGRESSION, why=why)
    if comparison.resolution > limit:
        why = (
            f"with this noise {comparison.samples} samples find only slowdowns over {100 * (limit + comparison.resolution):.0f} %; about "
            f"{comparison.enough} samples a side would decide for a limit of {100 * limit:.0f} %"
        )
        return replace(verdict, verdict=INCONCLUSIVE, why=why)
    return verdict


def decide(
    baseline: dict[str, Metric],
    current: dict[str, Metric],
    limits: Limits,
    *,
    interleaved: bool = False,
    doubt: str | None = None,
) -> list[Verdict]:
    """Verdicts of all metrics, in the baseline's order.

    interleaved: both sides ran in turn on one machine. doubt: why nothing timed can be trusted (throttling).
    """
    resamples = max(RESAMPLES, 40 * sum(bool(m.samples) for m in baseline.values()))
    verdicts = [
        _one(name, before, current.get(name), limits, interleaved, doubt, resamples)
        for name, before in baseline.items()
    ]
    timed = [i for i, v in enumerate(verdicts) if v.p is not None]
    for i, sure in zip(timed, holm([verdicts[i].p for i in timed]), strict=True):
        if verdicts[i].verdict == REGRESSION and not sure:
            why = f"slower, but not surely so among {len(timed)} timed metrics (Holm): more samples would decide"
            verdicts[i] = replace(verdicts[i], verdict=INCONCLUSIVE, why=why)
    new = [Verdict(n, NEW, "not in the baseline", None, m.value) for n, m in current.items() if n not in baseline]
    return verdicts + new


def _one(
    name: str,
    before: Metric,
    now: Metric | None,
    limits: Limits,
    interleaved: bool,
    doubt: str | None,
    resamples: int,
) -> Verdict:
    limit = limits.of(name)
    if now is None:
        return Verdict(name, REGRESSION, "not measured any more", before.value)
    if now.error is not None:
        return Verdict(name, REGRESSION, now.error, before.value, now.value)
    if before.samples or now.samples:
        if before.raw and not interleaved:
            return Verdict(name, SKIPPED, "seconds compare only between versions that run in turn (--against)")
        if doubt is not None:
            return Verdict(name, INCONCLUSIVE, doubt, limit=limit.relative)
        both = before.samples, now.samples
        return timing_verdict(*both, limit.relative, paired=interleaved, name=name, resamples=resamples)
    if before.value is None or now.value is None:
        return Verdict(name, INCONCLUSIVE, "one side has no value", before.value, now.value)
    return figure_verdict(name, before.value, now.value, limit)


def exit_code(verdicts: Sequence[Verdict], mismatch: Sequence[str] = ()) -> int:
    """0 all that could be compared passed, 1 a regression, 3 nothing worse than inconclusive, or nothing compared."""
    kinds = {v.verdict for v in verdicts}
    if mismatch:
        return 3
    return 1 if REGRESSION in kinds else 3 if INCONCLUSIVE in kinds or kinds <= {SKIPPED, NEW} else 0


def verdict_rows(verdicts: Sequence[Verdict]) -> list[VerdictRow]:
    """As rows of a results file."""
    return [VerdictRow(**asdict(v)) for v in verdicts]
