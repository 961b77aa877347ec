"""What a roofline leaves out: a call's launch and latency, and the share of the bandwidth that a kernel reaches.

Both are fitted to a measured `sq profile` by `python -m research.prediction`; the terms and the medians that they come from lie
beside this file as JSON, so that a prediction shows both where both exist.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from spectralquant.bench.cell import ATTENTION

DENSE = "dense bf16"
KERNELS = (DENSE, *ATTENTION)
Row = dict[str, Any]


@dataclass(frozen=True)
class Terms:
    """launch_us: µs that a call takes before bytes count. efficiency: bytes a second over the device's nominal bandwidth."""

    launch_us: float
    efficiency: float

    def time_us(self, nbytes: float, compute_us: float, tb_per_s: float) -> float:
        """Microseconds of a call on a device of this nominal bandwidth."""
        return self.launch_us + max(nbytes / (self.efficiency * tb_per_s) / 1e6, compute_us)


@dataclass(frozen=True)
class Fit:
    """terms: by kernel. measured: medians (kernel, context, batch, bytes_read, measured_us) of one shape on one device."""

    device: str
    shape: dict[str, int]
    settings: dict[str, Any]
    terms: dict[str, Terms]
    median_error: float
    worst_error: float
    measured: tuple[Row, ...]

    def measured_us(
        self, device: str, shape: Row, settings: Row, kernel: str, context: int, batch: int
    ) -> float | None:
        """The median time of the same call on the same device, where it was measured."""
        if device != self.device or any(shape.get(k) != v for k, v in self.shape.items()):
            return None
        if kernel != DENSE and any(settings.get(k) != v for k, v in self.settings.items()):
            return None
        wanted = (kernel, context, batch)
        return next(
            (r["measured_us"] for r in self.measured if (r["kernel"], r["context"], r["batch"]) == wanted), None
        )


@functools.cache
def shipped_fit() -> Fit:
    """The fit that comes with this version."""
    data = json.loads(resources.files("spectralquant.bench").joinpath("fit.json").read_text(encoding="utf-8"))
    terms = {kernel: Terms(**values) for kernel, values in data.pop("terms").items()}
    return Fit(terms=terms, measured=tuple(data.pop("measured")), **data)


def medians(result: Row) -> list[Row]:
    """The attention kernels and the fastest right dense kernel of every cell of a measured profile."""
    rows = [r for r in result["rows"] if r.get("correct") and "context" in r and r["kernel"] != "spectral_compress"]
    out = []
    for context, batch in dict.fromkeys((r["context"], r["batch"]) for r in rows):
        cell = [r for r in rows if (r["context"], r["batch"]) == (context, batch)]
        dense = [r for r in cell if not r["kernel"].startswith("spectral")]
        best = [min(dense, key=lambda r: r["time_us"]) | {"kernel": DENSE}] if dense else []
        out += [
            {
                "kernel": r["kernel"],
                "context": context,
                "batch": batch,
                "bytes_read": r["bytes_read"],
                "measured_us": round(r["time_us"], 2),
            }
            for r in (*best, *cell)
            if r["kernel"] in KERNELS
        ]
    return out


def fit_terms(rows: Sequence[Row], tb_per_s: float) -> dict[str, Terms]:
    """Launch and efficiency of each kernel: least squares of relative errors over `medians`."""
    out = {}
    for kernel in KERNELS:
        own = [r for r in rows if r["kernel"] == kernel]
        nbytes = np.array([r["bytes_read"] for r in own], dtype=float)
        time = np.array([r["measured_us"] for r in own])
        columns = np.stack([np.ones_like(time), nbytes], axis=1) / time[:, None]
        launch, slope = np.linalg.lstsq(columns, np.ones_like(time), rcond=None)[0]
        out[kernel] = Terms(round(float(launch), 2), round(1 / float(slope) / 1e6 / tb_per_s, 4))
    return out


def relative_errors(rows: Sequence[Row], terms: dict[str, Terms], tb_per_s: float) -> list[float]:
    """|predicted / measured − 1| of each row."""
    return [abs(terms[r["kernel"]].time_us(r["bytes_read"], 0.0, tb_per_s) / r["measured_us"] - 1) for r in rows]
