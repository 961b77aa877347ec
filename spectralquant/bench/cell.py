"""All kernels and baselines at one batch and context: checked against float64, then timed, as result rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from spectralquant.bench.baselines import Dense
from spectralquant.bench.checks import backend_of, check_kernel, operator_of, relative_error
from spectralquant.bench.device.peaks import Peaks
from spectralquant.bench.device.timing import Timing, graph_time, rotation
from spectralquant.bench.inputs import CodeSettings, Inputs, coded_tokens, random_inputs
from spectralquant.models.shapes import ModelShape
from spectralquant.results.speed import KernelRow
from sqkernels.common import PAGE, RowMatrices
from sqkernels.dense_decode.reference import dense_decode as dense_reference
from sqkernels.spectral_decode import decode_traffic, spectral_decode
from sqkernels.spectral_index_decode import index_traffic, spectral_index_decode
from sqkernels.spectral_reconstruct import reconstruct_traffic, spectral_reconstruct

ATTENTION = ("spectral_decode", "spectral_index_decode")
INPUT_BYTES = 12 * 10**9


@dataclass(frozen=True)
class Bench:
    """What every cell shares. device: its name."""

    shape: ModelShape
    matrices: RowMatrices
    settings: CodeSettings
    peaks: Peaks
    device: str

    def traffic(self, batch: int, context: int) -> dict[str, dict[str, int]]:
        """`kernel_traffic` on this device."""
        return kernel_traffic(self.shape, self.matrices, self.settings, batch, context, self.peaks.processors)

    def row(self, kernel: str, batch: int, context: int, timing: Timing, traffic: dict[str, int]) -> KernelRow:
        """A result row of method.md section 6. bytes_read: what the kernels of a call read and write."""
        rate = traffic["bytes"] / timing.median / 1e6
        return KernelRow(
            kernel=kernel,
            device=self.device,
            batch=batch,
            context=context,
            kv_heads=self.shape.kv_heads,
            group=self.shape.group,
            head_dim=self.shape.head_dim,
            time_us=timing.median,
            time_spread=[timing.low, timing.high],
            n=timing.n,
            time_samples=[round(t, 3) for t in timing.samples],
            bytes_read=traffic["bytes"],
            tb_per_s=rate,
            peak_share=rate / self.peaks.memory_tb_per_s,
            baseline=None,
            baseline_time_us=None,
            speedup=None,
        )


def kernel_traffic(
    shape: ModelShape, matrices: RowMatrices, settings: CodeSettings, batch: int, context: int, processors: int
) -> dict[str, dict[str, int]]:
    """Bytes read and written, and flops, of one call by kernel, counted; on a device of so many multiprocessors."""
    coded = coded_tokens(context, settings.window)
    exact, selected = context - coded, settings.selected(coded)
    return {
        "spectral_decode": decode_traffic(matrices, coded, exact, shape.group, batch=batch, processors=processors),
        "spectral_index_decode": index_traffic(matrices, coded, exact, selected, shape.group, batch=batch),
        "spectral_reconstruct": reconstruct_traffic(matrices, batch * PAGE * -(-coded // PAGE)),
    }


def dense_bytes(shape: ModelShape, batch: int, context: int) -> int:
    """Bytes of one layer's 16-bit keys and values."""
    return 4 * batch * shape.kv_heads * shape.head_dim * context


def dense_rows(bench: Bench, batch: int, context: int, baselines: dict[str, Dense]) -> list[KernelRow]:
    """Dense decode attention by every baseline; one that does not run here, or is wrong, says so in its row."""
    shape, device = bench.shape, bench.matrices.device
    nbytes = dense_bytes(shape, batch, context)
    size = (batch, shape.kv_heads, context, shape.head_dim)
    sets = []
    for _ in range(rotation(nbytes, bench.peaks.cache)):
        query = torch.randn(batch, shape.heads, shape.head_dim, device=device, dtype=torch.bfloat16)
        sets.append((query, *(torch.randn(size, device=device, dtype=torch.bfloat16) for _ in range(2))))
    first = tuple(x[:1] for x in sets[0])
    want = dense_reference(*first, shape.head_dim**-0.5, torch.float64)
    rows = []
    for name, run in baselines.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch tells at length why a backend does not take a shape
                error = relative_error(run(*sets[0])[:1], want)
            timing = graph_time([lambda s=s, run=run: run(*s) for s in sets])
        except Exception as reason:  # any backend may refuse a shape or device in its own way
            rows.append(KernelRow(kernel=name, batch=batch, context=context, failed=_first_line(reason)))
            continue
        row = bench.row(name, batch, context, timing, {"bytes": nbytes})
        row.ideal_us = nbytes / bench.peaks.memory_tb_per_s / 1e6
        row.error, row.correct = error, error <= 4 * torch.finfo(torch.bfloat16).eps
        rows.append(row)
    return rows


def spectral_rows(
    bench: Bench, batch: int, context: int, kernels: Sequence[str], dense: Sequence[KernelRow]
) -> list[KernelRow]:
    """Our kernels; a speed-up, over the fastest correct baseline, only where the check against float64 is green."""
    counted = bench.traffic(batch, context)
    page_bytes = batch * bench.matrices.layout.page_bytes * max(1, coded_tokens(context, bench.settings.window) // 128)
    best = fastest(dense)
    rows = []
    for name in (k for k in kernels if operator_of(k) in counted):
        traffic = counted[operator_of(name)]
        count = max(1, min(rotation(traffic["bytes"], bench.peaks.cache), INPUT_BYTES // page_bytes))
        sets = [
            random_inputs(bench.shape, bench.matrices, batch, context, bench.settings.window, s) for s in range(count)
        ]
        error, limit = check_kernel(name, sets[0], bench.settings.share)
        call = kernel_call(name, bench.settings)
        timing = graph_time([lambda i=i, call=call: call(i) for i in sets])
        row = bench.row(name, batch, context, timing, traffic)
        row.error, row.error_limit, row.correct, row.input_sets = error, limit, error <= limit, count
        if operator_of(name) in ATTENTION:
            row.bytes_share_of_dense = traffic["bytes"] / dense_bytes(bench.shape, batch, context)
            row.ideal_us = traffic["bytes"] / bench.peaks.memory_tb_per_s / 1e6
            if best is not None and row.correct:
                row.baseline, row.baseline_time_us = best.kernel, best.time_us
                row.speedup = best.time_us / timing.median
        rows.append(row)
        del sets
    return rows


def kernel_call(name: str, settings: CodeSettings) -> Callable[[Inputs], object]:
    """The kernel as a function of one input set; `OPERATOR:VARIANT` for a variant."""
    operator, backend = operator_of(name), backend_of(name)
    if operator == "spectral_decode":
        return lambda i: spectral_decode(i.query, i.pages, i.exact, backend=backend)
    if operator == "spectral_index_decode":
        return lambda i: spectral_index_decode(i.query, i.pages, i.exact, settings.share, backend=backend)
    return lambda i: spectral_reconstruct(
        i.pages.storage, i.pages.pages, i.pages.matrices, torch.bfloat16, backend=backend
    )


def fastest(dense: Sequence[KernelRow]) -> KernelRow | None:
    """The fastest baseline whose result is right."""
    return min((r for r in dense if r.correct), key=lambda r: r.time_us, default=None)


def _first_line(reason: Exception) -> str:
    return (str(reason).strip() or type(reason).__name__).split("\n")[0][:160]
