"""How often the timing rule errs: synthetic runs with known noise and known regressions."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from spectralquant.gate.verdict import timing_verdict
from spectralquant.provenance import provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept

SKEW_SHAPE = 4.0
CHANGES = (0.0, 0.10)
NOISES = (0.03, 0.08)
SHAPES = ("gaussian", "right-skewed")


def simulate(
    runs: int = 1000,
    samples: int = 10,
    limit: float = 0.05,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> Results:
    """A results file with one row a noise, shape and true change: shares of regression, pass and inconclusive."""
    generator = np.random.default_rng(seed)
    rows = []
    for shape in SHAPES:
        for noise in NOISES:
            for change in CHANGES:
                progress(f"{shape}, {100 * noise:g} %", len(rows), 8)
                pairs = [
                    (synthetic(generator, shape, noise, samples), synthetic(generator, shape, noise, samples))
                    for _ in range(runs)
                ]
                judge = functools.partial(_shares, pairs, change, limit)
                row = {"shape": shape, "noise": noise, "change": change}
                rows.append(row | kept.value(f"{shape}, noise {noise}, change {change}", judge))
    return results_file("gate-simulation", rows, provenance(seed=seed), runs=runs, samples=samples, limit=limit)


def _shares(pairs: list[tuple[np.ndarray, np.ndarray]], change: float, limit: float) -> dict[str, float]:
    """Shares of verdicts over pairs of runs, of which the second is slower by `change`."""
    counts = {"regression": 0, "pass": 0, "inconclusive": 0}
    for seed, (before, now) in enumerate(pairs):
        counts[timing_verdict(before, now * (1 + change), limit, paired=False, seed=seed).verdict] += 1
    return {verdict: count / len(pairs) for verdict, count in counts.items()}


def synthetic(generator: np.random.Generator, shape: str, noise: float, samples: int) -> np.ndarray:
    """Times around 1 with a standard deviation of `noise`; right-skewed ones follow a shifted gamma distribution."""
    if shape == "gaussian":
        return 1 + noise * generator.standard_normal(samples)
    excess = generator.gamma(SKEW_SHAPE, SKEW_SHAPE**-0.5, samples) - SKEW_SHAPE**0.5
    return 1 + noise * excess
