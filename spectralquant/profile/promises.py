"""From a promised KL to the error that blocks may have: the table that calibration for an error target leaves.

Calibration codes held-out text of several kinds with every block held to an error, and notes the KL that came of it. The
error for a KL is that of the kind of text that suffers most. Needs no torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from spectralquant.errors import InputError
from spectralquant.profile.schema import ErrorPoint, TierSummary

REACH = 4.0


def error_limit(summary: TierSummary, kl: float) -> float:
    """The error (squared base steps a token) at which no calibrated kind of text costs more than `kl` nats a token.

    Raises:
        InputError: the profile has no table, or one that ends far from this KL.
    """
    points = summary.errors
    if not points:
        raise InputError(
            f"A bound of {kl:g} nats needs a profile that was calibrated for one: sq calibrate --target error={kl:g}."
        )
    low = min(p.kl for p in points) / REACH
    if kl < low:
        raise InputError(
            f"A bound of {kl:g} nats is far under what this profile was calibrated for, {low:.2g} at least."
        )
    return min(_error_at([p for p in points if p.text == text], kl) for text in {p.text for p in points})


def _error_at(curve: Sequence[ErrorPoint], kl: float) -> float:
    """A kind's error at a KL: between its points in proportion (of logarithms), under them as the KL; never more than the
    largest, with which blocks are as calibrated whatever the KL.
    """
    curve = sorted(curve, key=lambda p: p.error)
    if kl <= curve[0].kl:
        return curve[0].error * kl / curve[0].kl
    for a, b in itertools.pairwise(curve):
        if a.kl < b.kl and kl <= b.kl:
            part = math.log(kl / a.kl) / math.log(b.kl / a.kl) if kl > a.kl else 0.0
            return a.error * math.pow(b.error / a.error, part)
    return curve[-1].error
