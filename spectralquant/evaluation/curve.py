"""Reading rate–distortion curves: ratios at equal quality, and the best point under a quality bar."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from spectralquant.results.quality import MethodRow

KL_BAR, DPPL_BAR = 0.0125, 0.18


def ratio_at_kl(rows: Sequence[MethodRow], kl: float, quantity: str = "payload_ratio") -> float | None:
    """Ratio at KL `kl`, interpolated linearly in log KL and log ratio; None outside the measured range."""
    points = sorted((math.log(r.kl_nats), math.log(r[quantity])) for r in rows)
    x = [p[0] for p in points]
    if len(points) < 2 or not x[0] <= math.log(kl) <= x[-1]:
        return None
    return math.exp(float(np.interp(math.log(kl), x, [p[1] for p in points])))


def best_under_bar(
    rows: Sequence[MethodRow], quantity: str = "payload_ratio", *, kl: float = KL_BAR, dppl: float = DPPL_BAR
) -> MethodRow | None:
    """The measured row of largest ratio with KL and ΔPPL under the bar; no interpolation."""
    good = [r for r in rows if r.kl_nats <= kl and r.delta_ppl <= dppl]
    return max(good, key=lambda r: r[quantity], default=None)


def times_smaller(ours: Sequence[MethodRow], theirs: Sequence[MethodRow], kl: float) -> float | None:
    """How many times fewer payload bytes `ours` needs than `theirs` at equal KL.

    Theirs is interpolated. So is ours, except where all our points are better than `kl`: then our smallest code stands
    for it, which understates the factor.
    """
    a, b = ratio_at_kl(ours, kl), ratio_at_kl(theirs, kl)
    if a is None and ours and max(r.kl_nats for r in ours) < kl:
        a = max(r.payload_ratio for r in ours)
    return None if a is None or b is None else a / b
