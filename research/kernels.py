"""Launch settings of the kernels, tried one by one: what the tuning notes beside the kernels quote.

Variants are compiled by worker processes first (Triton keeps compiled kernels on disk), so that the study takes seconds.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from spectralquant.bench.cell import Bench, kernel_call
from spectralquant.bench.compression import ALLOWED, compress_time
from spectralquant.bench.device.peaks import measure_peaks
from spectralquant.bench.device.telemetry import telemetry, verdict
from spectralquant.bench.device.timing import graph_time, rotation
from spectralquant.bench.inputs import CodeSettings, Inputs, random_inputs, random_matrices
from spectralquant.models.shapes import parse_shape
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.kept import kept_rows
from spectralquant.results.schema import Results
from spectralquant.results.speed import KernelRow
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from sqkernels.common import PAGE
from sqkernels.spectral_compress import compress_traffic
from sqkernels.spectral_compress import ops as compress_ops
from sqkernels.spectral_decode import settings as decode_settings
from sqkernels.spectral_index_decode import settings as index_settings

OPERATORS = {
    "spectral_decode": (decode_settings, ("WIDE", "MANY")),
    "spectral_index_decode": (index_settings, ("WIDE", "MANY")),
    "spectral_compress": (compress_ops, ("HALF",)),
}
Progress = Callable[[str, int, int], None]
Row = dict[str, Any]
WORKERS = 12
DECODE = [
    {"block": b, "warps": w, "programs": p, "stages": s}
    for b, w, p, s in (
        (64, 1, 8, 3),
        (64, 2, 8, 3),
        (32, 1, 12, 3),
        (64, 1, 12, 3),
        (128, 2, 6, 3),
        (128, 4, 4, 3),
        (64, 4, 4, 3),
    )
]
INDEX = [
    {"programs": p, "scan_warps": sw, "block": b, "stages": s, "warps": w, "overlap": False}
    for p, sw, b, s, w in (
        (8, 4, 64, 2, 2),
        (8, 4, 128, 2, 4),
        (8, 4, 64, 2, 4),
        (8, 4, 32, 2, 1),
        (4, 4, 32, 2, 1),
        (4, 2, 32, 2, 1),
        (4, 4, 64, 2, 2),
        (16, 4, 64, 2, 2),
        (8, 8, 64, 2, 2),
        (8, 4, 32, 3, 2),
    )
]
DECODE += [DECODE[1] | {"overlap": True}, DECODE[5] | {"overlap": True}]
INDEX += [INDEX[1] | {"overlap": True}, INDEX[4] | {"overlap": True}]
COMPRESS = [
    {"tokens": t, "step": st, "warps": w, "stages": sg}
    for t, st, w, sg in (
        (128, 64, 4, 2),
        (128, 32, 8, 2),
        (128, 64, 8, 2),
        (128, 128, 8, 2),
        (64, 64, 4, 2),
        (64, 64, 4, 3),
        (32, 64, 4, 2),
    )
]
VARIANTS = [("spectral_decode", v) for v in DECODE] + [("spectral_index_decode", v) for v in INDEX]
VARIANTS += [("spectral_compress", v) for v in COMPRESS]


def kernel_study(
    shape: str,
    context: int,
    batches: tuple[int, ...],
    device: torch.device,
    progress: Progress,
    kept: Kept = NOTHING_KEPT,
) -> Results:
    """A row a kernel, batch and variant, fastest first within each."""
    model, settings = parse_shape(shape), CodeSettings()
    before = telemetry(device.index or 0)
    _compile_all(shape, context, batches, progress)
    bench = Bench(
        model,
        random_matrices(model, settings, device),
        settings,
        measure_peaks(device),
        torch.cuda.get_device_name(device),
    )
    rows = []
    for batch in batches:
        for kernel in ("spectral_decode", "spectral_index_decode"):
            timed = functools.partial(_timed, bench, kernel, batch, context, progress)
            rows += _fastest_first(kept_rows(kept, f"{kernel}, batch {batch}", KernelRow, timed))
    compressed = functools.partial(_compress_timed, bench, progress)
    rows += _fastest_first(kept_rows(kept, "spectral_compress", KernelRow, compressed))
    state = {"before": before, "after": telemetry(device.index or 0)}
    facts = provenance(**device_facts(device), shape=shape, settings=asdict(settings))
    return results_file("kernels", rows, facts, telemetry=state | {"verdict": verdict(*state.values())})


def _fastest_first(rows: list[KernelRow]) -> list[KernelRow]:
    return sorted(rows, key=lambda row: row.time_us or 0.0)


def _timed(bench: Bench, kernel: str, batch: int, context: int, progress: Progress) -> list[KernelRow]:
    total = bench.traffic(batch, context)[kernel]
    window = bench.settings.window
    sets = [
        random_inputs(bench.shape, bench.matrices, batch, context, window, seed)
        for seed in range(rotation(total["bytes"], bench.peaks.cache))
    ]
    call, rows = kernel_call(kernel, bench.settings), []
    for name, variant in VARIANTS:
        if name == kernel:
            progress(f"{kernel}, batch {batch}", len(rows), len(VARIANTS))
            with using(kernel, variant):
                timing = graph_time([lambda i=i: call(i) for i in sets])
            rows.append(bench.row(kernel, batch, context, timing, total).updated(variant=variant))
    return rows


def _compress_timed(bench: Bench, progress: Progress) -> list[KernelRow]:
    """One block of all layers; a variant whose codes are not the oracle's is not timed."""
    matrices = random_matrices(bench.shape, bench.settings, bench.matrices.device, layers=bench.shape.layers)
    rows = []
    for i, variant in enumerate(COMPRESS):
        progress("spectral_compress", i, len(COMPRESS))
        with using("spectral_compress", variant):
            timing, wrong = compress_time(bench.shape, matrices)
        if wrong <= ALLOWED:
            traffic = compress_traffic(matrices, PAGE)
            rows.append(bench.row("spectral_compress", 1, PAGE, timing, traffic).updated(variant=variant, error=wrong))
    return rows


@contextlib.contextmanager
def using(kernel: str, variant: dict[str, int]) -> Iterator[None]:
    """Launch a kernel with other settings."""
    ops, names = OPERATORS[kernel]
    kept = {name: getattr(ops, name) for name in names}
    chosen = ops.Settings(**variant)
    for name in names:
        setattr(ops, name, chosen)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(ops, name, value)


def _compile_all(shape: str, context: int, batches: tuple[int, ...], progress: Progress) -> None:
    jobs = [
        json.dumps(
            {"shape": shape, "context": context, "batches": batches, "which": list(range(i, len(VARIANTS), WORKERS))}
        )
        for i in range(WORKERS)
    ]
    run = lambda job: subprocess.run([sys.executable, "-m", __name__, job], check=False, capture_output=True)  # noqa: E731
    with ThreadPoolExecutor(WORKERS) as pool:
        for done, _ in enumerate(pool.map(run, jobs)):
            progress("compiling", done, WORKERS)


def _compile(job: dict[str, Any]) -> None:
    """Run some variants once."""
    model, settings, device = parse_shape(job["shape"]), CodeSettings(), torch.device("cuda")
    matrices = random_matrices(model, settings, device)
    inputs: dict[int, Inputs] = {
        b: random_inputs(model, matrices, b, job["context"], settings.window, 0) for b in job["batches"]
    }
    for i in job["which"]:
        kernel, variant = VARIANTS[i]
        if kernel == "spectral_compress":
            with using(kernel, variant):
                compress_time(model, random_matrices(model, settings, device, layers=1))
            continue
        for batch in job["batches"]:
            with using(kernel, variant):
                kernel_call(kernel, settings)(inputs[batch])
    torch.cuda.synchronize()


if __name__ == "__main__":
    _compile(json.loads(sys.argv[1]))
