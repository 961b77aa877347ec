"""Predicted times: bytes and flops against a device's nominal figures, with terms fitted to a measured profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from spectralquant.bench.cell import ATTENTION, dense_bytes, kernel_traffic
from spectralquant.bench.device.devices import DeviceModel, device_named
from spectralquant.bench.device.peaks import Peaks
from spectralquant.bench.fit import DENSE, Fit
from spectralquant.bench.inputs import CodeSettings
from spectralquant.models.shapes import ModelShape
from spectralquant.results.speed import KernelRow
from sqkernels.common import RowMatrices


@dataclass(frozen=True)
class Roof:
    """Bandwidth (TB/s) and 16-bit matrix rate (TFLOP/s), where the figures come from, and multiprocessors."""

    tb_per_s: float
    tflops: float
    source: str
    processors: int

    @classmethod
    def nominal(cls, device: DeviceModel) -> Roof:
        """Of a data sheet; copies reach a share of the nominal bandwidth."""
        return cls(
            device.tb_per_s * device.copy_share, device.tflops, f"data sheet of {device.name}", device.processors
        )

    @classmethod
    def measured(cls, peaks: Peaks) -> Roof:
        """Of this device."""
        return cls(peaks.memory_tb_per_s, peaks.matmul_tflops, "measured on this device", peaks.processors)

    def time_us(self, nbytes: float, flops: float) -> float:
        """Microseconds that the slower of both needs."""
        return max(nbytes / self.tb_per_s / 1e6, flops / self.tflops / 1e6)


def predicted_rows(
    device: DeviceModel,
    fit: Fit,
    shape: ModelShape,
    matrices: RowMatrices,
    settings: CodeSettings,
    batches: Sequence[int],
    contexts: Sequence[int],
) -> list[KernelRow]:
    """Rows like measured ones, with `predicted_us` and no time.

    roofline_us: what bytes and flops alone would take. measured_us: the median of the same call, where the fit was measured
    on this device at this shape (else None).
    """
    roof, rows = Roof.nominal(device), []
    for context in contexts:
        for batch in batches:
            counted = kernel_traffic(shape, matrices, settings, batch, context, roof.processors)
            dense = dense_bytes(shape, batch, context)
            calls = {DENSE: (dense, 2 * dense * shape.group)}
            calls |= {name: (counted[name]["bytes"], counted[name]["flops"]) for name in ATTENTION}
            times = {
                name: fit.terms[name].time_us(nbytes, roof.time_us(0, flops), device.tb_per_s)
                for name, (nbytes, flops) in calls.items()
            }
            for name, (nbytes, flops) in calls.items():
                measured = fit.measured_us(device.name, asdict(shape), asdict(settings), name, context, batch)
                rows.append(
                    KernelRow(
                        kernel=name,
                        batch=batch,
                        context=context,
                        predicted=True,
                        predicted_us=times[name],
                        roofline_us=roof.time_us(nbytes, flops),
                        measured_us=measured,
                        bytes_read=nbytes,
                        bytes_share_of_dense=nbytes / dense,
                        predicted_speedup=None if name == DENSE else times[DENSE] / times[name],
                    )
                )
    return rows


def predicted_beside(rows: Sequence[KernelRow], device: str | None, fit: Fit) -> dict[str, float]:
    """Predicted µs by kernel for the measured rows of one cell: the attention kernels and the fastest right dense one.

    Empty for a device whose nominal figures are not known.
    """
    model = device_named(device)
    if model is None:
        return {}
    right = [r for r in rows if r.get("correct")]
    dense = [r for r in right if not r["kernel"].startswith("spectral")]
    best = [min(dense, key=lambda r: r["time_us"])] if dense else []
    called = [(r["kernel"], DENSE, r) for r in best] + [(k, k, r) for r in right if (k := r["kernel"]) in ATTENTION]
    return {name: fit.terms[kind].time_us(r["bytes_read"], 0.0, model.tb_per_s) for name, kind, r in called}


def decode_ms(roof: Roof, shape: ModelShape, attention_us: float, batch: int) -> float:
    """Predicted milliseconds of a decode step: weights once, attention in every layer."""
    weights = roof.time_us(shape.weight_bytes, batch * shape.weight_bytes)
    return (weights + shape.layers * attention_us) / 1000
