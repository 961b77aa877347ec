"""What can be gated in a results file: named figures with a kind and a direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spectralquant.errors import InputError

QUALITY = ("payload_ratio", "whole_cache_ratio", "resident_ratio", "delta_ppl", "kl_nats", "top1", "needle")
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


def metrics_of(result: dict[str, Any]) -> dict[str, Metric]:
    """All metrics of a results file by name.

    Raises:
        InputError: nothing in it can be gated.
    """
    kind = result["kind"].removeprefix("spectralquant.")
    found: list[Metric] = []
    for row in result["rows"]:
        if "failed" in row:
            continue
        if kind == "gate":
            samples = tuple(row.get("samples") or ())
            found.append(Metric(row["metric"], row.get("value"), samples, bool(row.get("raw")), row.get("error")))
        elif kind == "profile":
            found += _kernel_metrics(row)
        else:
            found += _quality_metrics(kind, row)
    if not found:
        raise InputError(
            f"A {kind} results file holds nothing that can be gated (compare, calibrate, profile and suites do)."
        )
    names = [m.name for m in found]
    twice = {n for n in names if names.count(n) > 1}
    return {m.name: m for m in found if m.name not in twice}


def _quality_metrics(kind: str, row: dict[str, Any]) -> list[Metric]:
    options = row.get("options") or {}
    chosen = ",".join(f"{k}={v}" for k, v in sorted(options.items()) if not isinstance(v, (dict, list)))
    parts = [kind, str(row.get("method") or row.get("tier") or ""), chosen, str(row.get("context") or "")]
    name = "/".join(p for p in parts if p)
    fields = (*QUALITY, *COSTS)
    return [Metric(f"{name}/{f}", float(row[f])) for f in fields if isinstance(row.get(f), (int, float))]


def _kernel_metrics(row: dict[str, Any]) -> list[Metric]:
    if "context" not in row:
        return []
    name = f"profile/{row['kernel']}/context={row['context']},batch={row['batch']}"
    found = [Metric(f"{name}/{f}", float(row[f])) for f in COSTS if isinstance(row.get(f), (int, float))]
    if isinstance(row.get("correct"), bool):
        found.append(Metric(f"{name}/correct", float(row["correct"])))
    if row.get("speedup") and row.get("time_samples"):
        ratios = tuple(t / row["baseline_time_us"] for t in row["time_samples"])
        found.append(Metric(f"{name}/time_over_dense", samples=ratios))
    return found
