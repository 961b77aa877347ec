"""From which context on a compressed kernel is faster than the fastest dense one, from measured points."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spectralquant.results.speed import CrossoverRow, KernelRow


def crossovers(rows: Sequence[KernelRow]) -> list[CrossoverRow]:
    """One row a kernel and batch: `tokens` (None: not faster at the longest), bound "at most" where already the shortest is."""
    out = []
    measured = [r for r in rows if r.speedup]
    for kernel, batch in dict.fromkeys((r.kernel, r.batch) for r in measured):
        points = sorted((r.context, r.speedup) for r in measured if (r.kernel, r.batch) == (kernel, batch))
        tokens, bound = _crossing(points)
        out.append(CrossoverRow(kernel=kernel, batch=batch, tokens=tokens, bound=bound))
    return out


def _crossing(points: Sequence[tuple[int, float]]) -> tuple[int | None, str]:
    """Where log speed-up crosses 0 for the last time, linear in log context between measured points."""
    below = [i for i, (_, gain) in enumerate(points) if gain < 1]
    if not below:
        return points[0][0], "at most"
    i = below[-1]
    if i + 1 == len(points):
        return None, "more than the longest"
    (c0, s0), (c1, s1) = points[i], points[i + 1]
    share = -math.log(s0) / (math.log(s1) - math.log(s0))
    return math.ceil(c0 * (c1 / c0) ** share), "interpolated"
