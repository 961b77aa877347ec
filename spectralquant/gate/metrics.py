"""What can be gated in a results file: named figures with a kind and a direction."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spectralquant.errors import InputError
from spectralquant.results.base import Row
from spectralquant.results.checks import MetricRow
from spectralquant.results.quality import MethodRow
from spectralquant.results.schema import Results
from spectralquant.results.serving import ServingRow
from spectralquant.results.speed import KernelRow

QUALITY = ("payload_ratio", "whole_cache_ratio", "resident_ratio", "delta_ppl", "kl_nats", "top1", "needle")
SERVING = ("hit_share", "same_text", "kl_nats", "bytes_ratio", "trace_hit_share")
COSTS = ("resident_bytes", "bytes_read", "bytes_share_of_dense")


@dataclass(frozen=True)
class Metric:
    """A deterministic figure (`value`), or times or time ratios (`samples`).

    raw: samples are seconds of one machine's moment, comparable only where two versions run in turn; ratios of two times
    taken in one process are not raw. error: why it could not be measured.
    """

    name: str
    value: float | None = None
    samples: tuple[float, ...] = ()
    raw: bool = False
    error: str | None = None

    @property
    def field(self) -> str:
        """The last part of the name, by which limits are found."""
        return self.name.rsplit("/", 1)[-1]


def metrics_of(result: Results, where: str = "These results") -> dict[str, Metric]:
    """All metrics of a results file by name; `where` names it in messages.

    Raises:
        InputError: nothing in it can be gated, or two rows give one metric different figures.
    """
    metrics: dict[str, Metric] = {}
    for number, row in enumerate(result.rows):
        here = f"{where}, row {number + 1}"
        for metric in _metrics_of_row(result.name, row, here):
            if metrics.setdefault(metric.name, metric) != metric:
                raise InputError(
                    f"{here}: {metric.name} has other figures in an earlier row. Give each row its own name."
                )
    if not metrics:
        raise InputError(
            f"{where}: {result.name} results hold nothing that can be gated (compare, calibrate, profile and suites do)."
        )
    return metrics


def _metrics_of_row(kind: str, row: Row, where: str) -> Iterator[Metric]:
    match row:
        case MetricRow():
            yield _metric(row.metric, row.value, _times(row.samples or [], row.metric, where), bool(row.raw), row.error)
        case MethodRow() if not row.failed:
            yield from _quality_metrics(kind, row)
        case ServingRow():
            yield from _figures(f"{kind}/{row.way}", row, SERVING)
        case KernelRow() if not row.failed:
            yield from _kernel_metrics(row, where)


def _quality_metrics(kind: str, row: MethodRow) -> Iterator[Metric]:
    chosen = ",".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in sorted(row.options.items()))
    protocol = row.mode if row.mode == "prompt" else ""
    parts = [kind, row.method or row.tier or "", chosen, str(row.context or ""), protocol]
    name = "/".join(p for p in parts if p)
    yield from _figures(name, row, (*QUALITY, *COSTS))
    yield from (_metric(f"{name}/{score}", value) for score, value in row.scores.items() if value is not None)


def _kernel_metrics(row: KernelRow, where: str) -> Iterator[Metric]:
    name = f"profile/{row.kernel}/context={row.context},batch={row.batch}"
    yield from _figures(name, row, COSTS)
    if row.correct is not None:
        yield Metric(f"{name}/correct", float(row.correct))
    if row.speedup and row.time_samples:
        base, *times = _times([row.baseline_time_us, *row.time_samples], name, where)
        yield _metric(f"{name}/time_over_dense", samples=tuple(t / base for t in times))


def _figures(name: str, row: MethodRow | KernelRow, fields: tuple[str, ...]) -> Iterator[Metric]:
    for field in fields:
        if row.get(field) is not None:
            yield _metric(f"{name}/{field}", float(row[field]))


def _times(values: Sequence[float | None], name: str, where: str) -> tuple[float, ...]:
    times = tuple(float("nan") if value is None else float(value) for value in values)
    if any(t <= 0 for t in times):
        raise InputError(f"{where}: {name} has a sample that is not positive; times and their ratios are.")
    return times


def _metric(
    name: str,
    value: float | None = None,
    samples: tuple[float, ...] = (),
    raw: bool = False,
    error: str | None = None,
) -> Metric:
    """A metric; one that is not finite counts as one that could not be measured."""
    bad = next((v for v in (value, *samples) if v is not None and not math.isfinite(v)), None)
    if bad is not None and error is None:
        error = f"came out as {bad}"
    return Metric(name, value, samples, raw, error)
