"""What can be gated in a results file: named figures with a kind and a direction."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spectralquant.errors import InputError

QUALITY = ("payload_ratio", "whole_cache_ratio", "resident_ratio", "delta_ppl", "kl_nats", "top1", "needle")
COSTS = ("resident_bytes", "bytes_read", "bytes_share_of_dense")

Row = dict[str, Any]


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


def metrics_of(result: dict[str, Any], where: str = "These results") -> dict[str, Metric]:
    """All metrics of a results file by name; `where` names it in messages.

    Raises:
        InputError: nothing in it can be gated, a figure is no number, or two rows give one metric different figures.
    """
    kind = result["kind"].removeprefix("spectralquant.")
    read = {"gate": _suite_metrics, "profile": _kernel_metrics}.get(kind, _quality_metrics)
    found: dict[str, Metric] = {}
    for number, row in enumerate(result["rows"]):
        if "failed" in row:
            continue
        here = f"{where}, row {number + 1}"
        for metric in read(kind, row, here):
            if found.setdefault(metric.name, metric) != metric:
                raise InputError(
                    f"{here}: {metric.name} has other figures in an earlier row. Give each row its own name."
                )
    if not found:
        raise InputError(
            f"{where}: {kind} results hold nothing that can be gated (compare, calibrate, profile and suites do)."
        )
    return found


def _suite_metrics(kind: str, row: Row, where: str) -> Iterator[Metric]:
    name, error, samples = row.get("metric"), row.get("error"), row.get("samples") or []
    if not isinstance(name, str) or not name:
        raise InputError(f"{where} has no name: metric must be a text, not {name!r}.")
    if not isinstance(samples, list) or not isinstance(error, (str, type(None))):
        raise InputError(f"{where}: {name} needs a list of samples, and a text or null as its error.")
    times = tuple(_number(s, name, where) for s in samples)
    if any(not t > 0 for t in times):
        raise InputError(f"{where}: {name} has a sample that is not positive; times and their ratios are.")
    value = row.get("value")
    yield _metric(name, None if value is None else _number(value, name, where), times, bool(row.get("raw")), error)


def _quality_metrics(kind: str, row: Row, where: str) -> Iterator[Metric]:
    options = row.get("options") or {}
    if not isinstance(options, dict):
        raise InputError(f"{where}: options must be a table, not {options!r}.")
    chosen = ",".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in sorted(options.items()))
    parts = [kind, str(row.get("method") or row.get("tier") or ""), chosen, str(row.get("context") or "")]
    name, scores = "/".join(p for p in parts if p), row.get("scores") or {}
    if not isinstance(scores, dict):
        raise InputError(f"{where}: scores must be a table, not {scores!r}.")
    yield from _figures(name, row, (*QUALITY, *COSTS), where)
    yield from _figures(name, scores, tuple(scores), where)


def _kernel_metrics(kind: str, row: Row, where: str) -> Iterator[Metric]:
    if "context" not in row:
        return
    name = f"profile/{row.get('kernel')}/context={row['context']},batch={row.get('batch')}"
    yield from _figures(name, row, COSTS, where)
    if isinstance(row.get("correct"), bool):
        yield Metric(f"{name}/correct", float(row["correct"]))
    if row.get("speedup") and row.get("time_samples"):
        base = _number(row.get("baseline_time_us"), f"{name}/baseline_time_us", where)
        samples = row["time_samples"] if isinstance(row["time_samples"], list) else [row["time_samples"]]
        times = tuple(_number(t, f"{name}/time_samples", where) for t in samples)
        if not all(t > 0 for t in (base, *times)):
            raise InputError(f"{where}: {name} has a time that is not positive.")
        yield _metric(f"{name}/time_over_dense", samples=tuple(t / base for t in times))


def _figures(name: str, row: Row, fields: tuple[str, ...], where: str) -> Iterator[Metric]:
    for field in fields:
        if row.get(field) is not None:
            yield _metric(f"{name}/{field}", _number(row[field], f"{name}/{field}", where))


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


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise InputError(f"{where}: {name} is {str(value)[:40]!r}, which is not a number.")
