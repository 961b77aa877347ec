"""From a promised KL to the errors that blocks may have: the table that calibration for an error target leaves.

Calibration codes text of many kinds, once as calibrated and at several errors of the second stage, and notes the KL that came
of it. Blocks stay as calibrated up to an error that no kind had whose KL was too large; the second stage leaves what keeps the
KL of the kind that suffers most. Needs no torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from spectralquant.errors import InputError
from spectralquant.profile.schema import ErrorPoint, TierSummary

REACH = 4.0
MEASURE = 2  # of errors: raised where codecs of before would keep another bound
BEFORE, BEYOND = 0.95, 1.1  # of the errors of kinds that are over a KL and under it
TOLERATED = 1.1
UNSEEN_KINDS = 0.8


@dataclass(frozen=True)
class ErrorLimits:
    """The largest errors of blocks as calibrated, and with a second stage (squared base steps a token)."""

    plain: float
    second: float


FREE = ErrorLimits(math.inf, math.inf)


def error_limits(summary: TierSummary, kl: float) -> ErrorLimits:
    """The errors at which no kind of text should cost more than `kl` nats a token.

    Raises:
        InputError: the profile has no table, or one that ends far from this KL.
    """
    points = summary.errors
    if not points:
        raise InputError(
            f"A bound of {kl:g} nats needs a profile that was calibrated for one: sq calibrate --target error={kl:g}."
        )
    if summary.error_measure != MEASURE:
        raise InputError(
            f"A bound of {kl:g} nats: this profile's table of errors is of an earlier version, which measured them otherwise. "
            f"Calibrate again (sq calibrate --target error={kl:g}), or go without a bound (bound=None in Python)."
        )
    low = min(p.kl for p in points) / REACH
    if kl < low:
        raise InputError(
            f"A bound of {kl:g} nats is far under what this profile was calibrated for, {low:.2g} at least."
        )
    plain = [p for p in points if not p.second]
    over = [p.error for p in plain if p.kl > TOLERATED * kl]
    most = BEFORE * min(over) if over else BEYOND * max(p.error for p in plain)
    return ErrorLimits(most, min(_error_at(curve, UNSEEN_KINDS * kl) for curve in _curves(points)))


def kl_as_calibrated(summary: TierSummary, error: float) -> float | None:
    """The KL to be expected of text with this error as calibrated; None where a profile knows nothing of it."""
    points = [p for p in summary.errors if not p.second]
    if not points and summary.as_calibrated is not None:
        points = [summary.as_calibrated]
    return _kl_at(points, error) if points and summary.error_measure == MEASURE else None


def kl_of_second(summary: TierSummary, error: float) -> float | None:
    """The KL of text with this error after a second stage, of the kind that suffers most."""
    known = summary.error_measure == MEASURE
    return max((_kl_at(curve, error) for curve in _curves(summary.errors)), default=None) if known else None


def _curves(points: Sequence[ErrorPoint]) -> list[list[ErrorPoint]]:
    """The second stage's points, kind by kind."""
    kinds = dict.fromkeys(p.text for p in points if p.second)
    return [[p for p in points if p.second and p.text == kind] for kind in kinds]


def _kl_at(curve: Sequence[ErrorPoint], error: float) -> float:
    """KL at an error: between the points in proportion (of logarithms), beyond them as the error."""
    if error <= 0:
        return 0.0
    curve = sorted(curve, key=lambda p: p.error)
    nearest = curve[0] if error <= curve[0].error else curve[-1]
    for a, b in itertools.pairwise(curve):
        if a.error < error < b.error:
            part = math.log(error / a.error) / math.log(b.error / a.error)
            return a.kl * math.pow(b.kl / a.kl, part)
    return nearest.kl * error / nearest.error


def _error_at(curve: Sequence[ErrorPoint], kl: float) -> float:
    """A kind's error at a KL: between its points in proportion (of logarithms), under them as the KL; never more than the
    largest.
    """
    curve = sorted(curve, key=lambda p: p.error)
    if kl <= curve[0].kl:
        return curve[0].error * kl / curve[0].kl
    for a, b in itertools.pairwise(curve):
        if a.kl < b.kl and kl <= b.kl:
            part = math.log(kl / a.kl) / math.log(b.kl / a.kl) if kl > a.kl else 0.0
            return a.error * math.pow(b.error / a.error, part)
    return curve[-1].error
