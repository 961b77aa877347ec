"""`gpu`: are the kernels right, do they read what they did, and are they as fast against dense attention as they were?

Times are ratios: one call of a kernel and one of the dense baseline in turn, in one process, so that a device's state moves
both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict

import torch

from spectralquant.bench.baselines import dense_baselines
from spectralquant.bench.cell import ATTENTION, Bench, dense_rows, fastest, kernel_call
from spectralquant.bench.checks import check_kernel
from spectralquant.bench.device.peaks import measure_peaks
from spectralquant.bench.device.telemetry import telemetry, verdict
from spectralquant.bench.device.timing import graph_time
from spectralquant.bench.inputs import CodeSettings, random_inputs, random_matrices
from spectralquant.errors import InputError
from spectralquant.models.shapes import parse_shape
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.checks import MetricRow
from spectralquant.results.files import results_file
from spectralquant.results.kept import kept_rows
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept

Progress = Callable[[str, int, int], None]
SHAPE, CONTEXT, BATCHES, ROUNDS = "llama-3.1-8b", 32768, (1, 8), 15


def gpu_suite(
    device: torch.device,
    progress: Progress = lambda stage, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> Results:
    """A results file with one row a metric.

    Raises:
        InputError: there is no CUDA device.
    """
    header = gpu_suite_header(device)
    before = telemetry(device.index or 0)
    shape, settings = parse_shape(SHAPE), CodeSettings()
    bench = Bench(
        shape,
        random_matrices(shape, settings, device),
        settings,
        measure_peaks(device),
        torch.cuda.get_device_name(device),
    )
    rows: list[MetricRow] = []
    for batch in BATCHES:
        rows += kept_rows(kept, f"batch {batch}", MetricRow, functools.partial(_batch_rows, bench, batch, progress))
    state = {"before": before, "after": telemetry(device.index or 0)}
    header.provenance |= kept.facts()
    return header.updated(telemetry=state | {"verdict": verdict(*state.values())}, rows=rows)


def gpu_suite_header(device: torch.device) -> Results:
    """The results file without rows: all that decides whether results can be compared, known before anything is measured.

    Raises:
        InputError: there is no CUDA device.
    """
    if device.type != "cuda":
        raise InputError("The gpu suite times kernels on a CUDA device, and there is none here. Use --run smoke.")
    facts = provenance(**device_facts(device), dtype="torch.bfloat16")
    return results_file("gate", [], facts, suite="gpu", settings=asdict(CodeSettings()) | {"shape": SHAPE})


def _batch_rows(bench: Bench, batch: int, progress: Progress) -> list[MetricRow]:
    """Correctness, bytes and time ratios of the attention kernels at one batch."""
    shape, settings, device = bench.shape, bench.settings, bench.matrices.device
    baselines = dense_baselines(flex=False)
    best = baselines[fastest(dense_rows(bench, batch, CONTEXT, baselines)).kernel]
    inputs = random_inputs(shape, bench.matrices, batch, CONTEXT, settings.window, 0)
    size = (batch, shape.kv_heads, CONTEXT, shape.head_dim)
    keys, values = (torch.randn(size, device=device, dtype=torch.bfloat16) for _ in range(2))
    counted = bench.traffic(batch, CONTEXT)
    rows = []
    for kernel in ATTENTION:
        name = f"gpu/{kernel}/context={CONTEXT},batch={batch}"
        error, limit = check_kernel(kernel, inputs, settings.share)
        ours = functools.partial(kernel_call(kernel, settings), inputs)
        dense = functools.partial(best, inputs.query, keys, values)
        ratios = []
        for done in range(ROUNDS):
            progress(name, done, ROUNDS)
            ratios.append(graph_time([ours], replays=7).median / graph_time([dense], replays=7).median)
        rows += [
            MetricRow(metric=f"{name}/correct", value=float(error <= limit)),
            MetricRow(metric=f"{name}/bytes_read", value=float(counted[kernel]["bytes"])),
            MetricRow(metric=f"{name}/time_over_dense", samples=ratios),
        ]
    return rows
