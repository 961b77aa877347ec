"""Roofline predictions: the least time bytes and flops take. Never a measured time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spectralquant.bench.cell import ATTENTION, dense_bytes, kernel_traffic
from spectralquant.bench.device.devices import DeviceModel
from spectralquant.bench.device.peaks import Peaks
from spectralquant.bench.inputs import CodeSettings
from spectralquant.models.shapes import ModelShape
from spectralquant.results.speed import KernelRow
from sqkernels.common import RowMatrices


@dataclass(frozen=True)
class Roof:
    """Sustained bandwidth (TB/s) and 16-bit matrix rate (TFLOP/s), where the figures come from, and multiprocessors."""

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
        return cls(peaks.copy_tb_per_s, peaks.matmul_tflops, "measured on this device", peaks.processors)

    def time_us(self, nbytes: float, flops: float) -> float:
        """Microseconds that the slower of both needs."""
        return max(nbytes / self.tb_per_s / 1e6, flops / self.tflops / 1e6)


def predicted_rows(
    roof: Roof,
    shape: ModelShape,
    matrices: RowMatrices,
    settings: CodeSettings,
    batches: Sequence[int],
    contexts: Sequence[int],
) -> list[KernelRow]:
    """Rows like measured ones, with `predicted_us` and no time. Launches and selection take no time here, which real kernels
    need: small contexts come out too fast."""
    rows = []
    for context in contexts:
        for batch in batches:
            counted = kernel_traffic(shape, matrices, settings, batch, context, roof.processors)
            dense = dense_bytes(shape, batch, context)
            base = roof.time_us(dense, 2 * dense * shape.group)
            predicted = {"dense bf16": (dense, base)}
            for name in ATTENTION:
                traffic = counted[name]
                predicted[name] = (traffic["bytes"], roof.time_us(traffic["bytes"], traffic["flops"]))
            for name, (nbytes, time) in predicted.items():
                rows.append(
                    KernelRow(
                        kernel=name,
                        batch=batch,
                        context=context,
                        predicted=True,
                        predicted_us=time,
                        bytes_read=nbytes,
                        bytes_share_of_dense=nbytes / dense,
                        predicted_speedup=None if name == "dense bf16" else base / time,
                    )
                )
    return rows


def decode_ms(roof: Roof, shape: ModelShape, attention_us: float, batch: int) -> float:
    """Predicted milliseconds of a decode step: weights once, attention in every layer."""
    weights = roof.time_us(shape.weight_bytes, batch * shape.weight_bytes)
    return (weights + shape.layers * attention_us) / 1000
