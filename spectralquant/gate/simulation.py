"""How often the timing rule errs: synthetic runs with known noise and known regressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from spectralquant.gate.verdict import timing_verdict
from spectralquant.provenance import provenance
from spectralquant.results.files import results_file

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
) -> dict[str, Any]:
    """A results file with one row a noise, shape and true change: shares of regression, pass and inconclusive."""
    generator = np.random.default_rng(seed)
    rows = []
    for shape in SHAPES:
        for noise in NOISES:
            for change in CHANGES:
                progress(f"{shape}, {100 * noise:g} %", len(rows), 8)
                found = {"regression": 0, "pass": 0, "inconclusive": 0}
                for run in range(runs):
                    before = synthetic(generator, shape, noise, samples)
                    now = synthetic(generator, shape, noise, samples) * (1 + change)
                    found[timing_verdict(before, now, limit, paired=False, seed=run).verdict] += 1
                rows.append(
                    {"shape": shape, "noise": noise, "change": change, **{k: v / runs for k, v in found.items()}}
                )
    return results_file("gate-simulation", rows, provenance(seed=seed), runs=runs, samples=samples, limit=limit)


def synthetic(generator: np.random.Generator, shape: str, noise: float, samples: int) -> np.ndarray:
    """Times around 1 with a standard deviation of `noise`; right-skewed ones follow a shifted gamma distribution."""
    if shape == "gaussian":
        return 1 + noise * generator.standard_normal(samples)
    excess = generator.gamma(SKEW_SHAPE, SKEW_SHAPE**-0.5, samples) - SKEW_SHAPE**0.5
    return 1 + noise * excess
