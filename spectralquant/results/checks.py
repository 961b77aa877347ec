"""Rows of what the gate measures and decides, and of `sq doctor` and `sq report`."""

from __future__ import annotations

from pydantic import Field

from spectralquant.results.base import Figure, Row


class MetricRow(Row):
    """One metric of a suite: a figure, or times and ratios of times (samples).

    raw: samples are seconds, comparable only between versions that ran in turn. error: why it could not be measured.
    """

    metric: str
    value: Figure = None
    samples: list[float] | None = None
    raw: bool | None = None
    error: str | None = None


class VerdictRow(Row):
    """What the gate says of one metric. change: absolute for figures, relative for times; p: of a slowdown beyond the limit."""

    metric: str
    verdict: str
    why: str
    baseline: Figure = None
    now: Figure = None
    change: Figure = None
    limit: Figure = None
    p: Figure = None


class ErrorRateRow(Row):
    """Shares of verdicts over synthetic runs of known noise and true change."""

    shape: str
    noise: float
    change: float
    regression: float
    passed: float = Field(alias="pass")
    inconclusive: float


class CheckRow(Row):
    """One line of `sq doctor`: ok, warn or fail; what it found, and what mends it."""

    check: str
    status: str
    found: str
    fix: str | None = None


class ReportedRow(Row):
    """One results file of a report."""

    file: str
    kind: str
    rows: int
    command: str | None = None
    created: str | None = None
    git_commit: str | None = None
