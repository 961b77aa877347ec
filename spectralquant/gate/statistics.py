"""Is one set of timings slower than another by more than a limit? One-sided bootstrap bounds on a median ratio.

The ratio is the median of all ratios b/a (Hodges and Lehmann 1963, on logarithms): as hard to upset by outliers as the ratio
of medians, and with Gaussian noise it needs a third fewer samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST_SAMPLES, ENOUGH_SAMPLES = 7, 10
MOST_VARIATION = 0.10
CONFIDENCE = 0.95
RESAMPLES = 1000
OVER_MEAN = math.pi / 3  # variance of the estimate over that of a ratio of means, for Gaussian noise
POWER = 0.90
Z = float(stats.norm.ppf(CONFIDENCE) + stats.norm.ppf(POWER))


@dataclass(frozen=True)
class Comparison:
    """ratio: the median of all b/a. bound: its one-sided 95 % lower bound. p: how likely a ratio over `1 + limit` is seen
    when there is none. resolution: how far beyond the limit a slowdown must be to be found nine times in ten. variation: the
    larger coefficient of variation. enough: samples a side with which twice the limit would be."""

    ratio: float
    bound: float
    p: float
    resolution: float
    variation: float
    samples: int
    enough: int


def compare_times(
    a: Sequence[float], b: Sequence[float], limit: float, *, paired: bool, seed: int = 0, resamples: int = RESAMPLES
) -> Comparison:
    """Compare times b (now) with a (before); limit: allowed relative slowdown.

    paired: a[i] and b[i] were taken in turn, so that they are resampled together and drift of the machine cancels.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    paired = paired and len(x) == len(y)
    resampled = stats.bootstrap(
        (x, y),
        _median_ratio,
        paired=paired,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=CONFIDENCE,
        alternative="greater",
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    spread = resampled.bootstrap_distribution
    variance = OVER_MEAN * sum(float(np.log(s).var(ddof=1)) / len(s) for s in (x, y))
    resolution = Z * math.sqrt(variance)
    samples = min(len(x), len(y))
    return Comparison(
        ratio=float(_median_ratio(x, y, -1)),
        bound=float(resampled.confidence_interval.low),
        p=float((1 + (spread <= 1 + limit).sum()) / (1 + len(spread))),
        resolution=resolution,
        variation=float(max(s.std(ddof=1) / s.mean() for s in (x, y))),
        samples=samples,
        enough=max(samples + 1, math.ceil(samples * (resolution / max(limit, 1e-9)) ** 2)),
    )


def _median_ratio(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """Median of all b/a along the last axis."""
    ratios = (b[..., :, None] / a[..., None, :]).reshape(*b.shape[:-1], -1)
    half = ratios.shape[-1] // 2
    middle = (half,) if ratios.shape[-1] % 2 else (half - 1, half)
    return np.partition(ratios, middle, axis=-1)[..., list(middle)].mean(-1)


def holm(p: Sequence[float], level: float = 1 - CONFIDENCE) -> list[bool]:
    """Which hypotheses are rejected at a family-wise `level` (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    rejected = [False] * len(p)
    for rank, i in enumerate(order):
        if p[i] > level / (len(p) - rank):
            break
        rejected[i] = True
    return rejected
