"""`bench_device` and `predict_device`: everything `sq profile` reports, as a results file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from spectralquant.bench.baselines import dense_baselines
from spectralquant.bench.cell import ATTENTION, Bench, dense_rows, spectral_rows
from spectralquant.bench.compression import compress_row
from spectralquant.bench.crossover import crossovers
from spectralquant.bench.device.devices import DeviceModel
from spectralquant.bench.device.peaks import Peaks, measure_peaks
from spectralquant.bench.device.telemetry import telemetry, verdict
from spectralquant.bench.end_to_end import end_to_end_rows
from spectralquant.bench.fit import shipped_fit
from spectralquant.bench.inputs import SINKS, CodeSettings, random_matrices
from spectralquant.bench.memory import memory_rows
from spectralquant.bench.prediction import Roof, predicted_rows
from spectralquant.errors import InputError, did_you_mean
from spectralquant.models.shapes import ModelShape
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.kept import kept_rows
from spectralquant.results.schema import BenchResults
from spectralquant.results.speed import KernelRow, StepRow
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from sqkernels.common import RowMatrices
from sqkernels.common.checks import HEAD_DIMS, MAX_GROUP
from sqkernels.common.runtime import variants

KERNELS = (*ATTENTION, "spectral_reconstruct", "spectral_compress")
LEAST_CONTEXT = 2 * (SINKS + 128)
FLEX_CELLS = ((32768, 1), (32768, 8))
STEP_CONTEXT, STEP_BATCHES = 32768, (1, 8)
Progress = Callable[[str, int, int], None]
Save = Callable[[BenchResults], None]


def known_kernels() -> tuple[str, ...]:
    """Kernels that can be timed, variants as `OPERATOR:VARIANT` among them."""
    return KERNELS + tuple(f"{k}:{v}" for k in KERNELS if k != "spectral_compress" for v in variants(k))


@dataclass(frozen=True)
class BenchRequest:
    """What to measure. end_to_end: whole decode steps at 32,768 tokens (or the first context), batches 1 and 8."""

    shape: ModelShape
    settings: CodeSettings = field(default_factory=CodeSettings)
    contexts: tuple[int, ...] = (32768,)
    batches: tuple[int, ...] = (1, 8)
    kernels: tuple[str, ...] = KERNELS
    end_to_end: bool = False
    flex: bool = True
    seed: int = 0

    def check(self) -> None:
        """Raise InputError for what kernels cannot take."""
        known = known_kernels()
        for name in self.kernels:
            if name not in known:
                raise InputError(
                    f"There is no kernel {name!r}; there are {', '.join(known)}.{did_you_mean(name, known)}"
                )
        if min(self.contexts) < LEAST_CONTEXT:
            raise InputError(f"--context must be at least {LEAST_CONTEXT}: sinks and window are exact anyway.")
        if min(self.batches) < 1:
            raise InputError("--batch must be positive numbers, as in --batch 1,8.")
        if (
            self.shape.head_dim not in HEAD_DIMS
            or self.shape.heads % self.shape.kv_heads
            or self.shape.group > MAX_GROUP
        ):
            raise InputError(
                f"Kernels take head dimensions {', '.join(map(str, HEAD_DIMS))} and at most {MAX_GROUP} query heads a "
                f"key head; {self.shape.name} has {self.shape.head_dim} and {self.shape.heads}/{self.shape.kv_heads}."
            )
        if self.settings.bits not in (2, 3, 4, 8):
            raise InputError(f"--bits {self.settings.bits} is not one of 2, 3, 4, 8.")
        if not 0 < self.settings.share <= 1:
            raise InputError(f"--share {self.settings.share:g} must lie between 0 and 1 (a part of the coded tokens).")
        if self.settings.index_rank % 16 or not 16 <= self.settings.index_rank <= self.shape.head_dim:
            raise InputError(
                f"--index-rank {self.settings.index_rank} must be a multiple of 16, at most {self.shape.head_dim}."
            )
        if self.settings.window < 1:
            raise InputError("--window must be a positive number of tokens.")


def bench_device(
    request: BenchRequest,
    device: torch.device,
    progress: Progress = lambda stage, done, total: None,
    save: Save = lambda result: None,
    kept: Kept = NOTHING_KEPT,
) -> BenchResults:
    """Measure on a CUDA device. `save` gets the results file after every cell, with `complete` false until the end; `kept`
    keeps the cells of a run that is interrupted."""
    request.check()
    torch.manual_seed(request.seed)
    before = telemetry(device.index or 0)
    progress("peaks", 0, 1)
    peaks = Peaks(**kept.value("peaks", lambda: asdict(measure_peaks(device))))
    matrices = random_matrices(request.shape, request.settings, device)
    bench = Bench(request.shape, matrices, request.settings, peaks, torch.cuda.get_device_name(device))
    memory = torch.cuda.get_device_properties(device).total_memory
    baselines = dense_baselines()
    rows: list[KernelRow] = []
    extra: dict[str, Any] = {"peaks": asdict(peaks), "end_to_end": []}

    def finish(complete: bool) -> BenchResults:
        after = telemetry(device.index or 0)
        extra["telemetry"] = {"before": before, "after": after, "verdict": verdict(before, after)}
        extra["crossover"] = crossovers(rows)
        result = _results(request, matrices, rows, memory, device_facts(device) | kept.facts(), complete, extra)
        save(result)
        return result

    if "spectral_compress" in request.kernels:
        progress("spectral_compress", 0, 1)
        rows += kept_rows(kept, "spectral_compress", KernelRow, lambda: [compress_row(bench)])
    cells = [(c, b) for c in request.contexts for b in request.batches]
    step_context = STEP_CONTEXT if STEP_CONTEXT in request.contexts else request.contexts[0]
    for done, (context, batch) in enumerate(cells):
        progress(f"context {context}, batch {batch}", done, len(cells))
        compiled = request.flex and (len(cells) <= len(FLEX_CELLS) or (context, batch) in FLEX_CELLS)
        use = {k: v for k, v in baselines.items() if k != "flex_compiled" or compiled}
        cell = functools.partial(_cell, bench, batch, context, request.kernels, use)
        rows += kept_rows(kept, f"context {context}, batch {batch}", KernelRow, cell)
        torch.cuda.empty_cache()
        finish(False)
        if request.end_to_end and context == step_context and batch in STEP_BATCHES:
            progress(f"decode step, batch {batch}", done, len(cells))
            steps = functools.partial(_end_to_end, bench, batch, context, request, rows, baselines)
            extra["end_to_end"] += kept_rows(kept, f"decode step, batch {batch}", StepRow, steps)
            finish(False)
    return finish(True)


def _cell(bench: Bench, batch: int, context: int, kernels: Sequence[str], baselines: dict[str, Any]) -> list[KernelRow]:
    """All kernels at one context and batch, or a row that says that they do not fit into memory."""
    try:
        dense = dense_rows(bench, batch, context, baselines)
        return dense + spectral_rows(bench, batch, context, kernels, dense)
    except torch.OutOfMemoryError:
        return [KernelRow(kernel="all", batch=batch, context=context, failed="does not fit into memory")]


def predict_device(request: BenchRequest, model: DeviceModel) -> BenchResults:
    """Predictions for a device that is not here: a roofline with launch and latency terms of `shipped_fit`, and beside them
    what was measured, where the fit was measured at that shape on that device.

    Raises:
        InputError: a context and batch whose cache does not fit into that device's memory by any method.
    """
    request.check()
    matrices = random_matrices(request.shape, request.settings, "cpu")
    _require_memory(request, matrices, model)
    fit = shipped_fit()
    rows = predicted_rows(model, fit, request.shape, matrices, request.settings, request.batches, request.contexts)
    fitted = {
        "device": fit.device,
        "terms": {name: asdict(terms) for name, terms in fit.terms.items()},
        "median_error": fit.median_error,
        "worst_error": fit.worst_error,
    }
    extra = {"roof": asdict(Roof.nominal(model)), "fit": fitted, "telemetry": None, "crossover": [], "end_to_end": []}
    facts = {"device": None, "device_model": model.name}
    return _results(request, matrices, rows, model.memory, facts, True, extra)


def _require_memory(request: BenchRequest, matrices: RowMatrices, model: DeviceModel) -> None:
    for context in request.contexts:
        for batch in request.batches:
            rows = memory_rows(request.shape, matrices, request.settings, batch, context, model.memory)
            least = min(rows, key=lambda row: row.bytes)
            if least.bytes > model.memory:
                raise InputError(
                    f"--context {context} with --batch {batch} does not fit into memory: the smallest cache ({least.method}) "
                    f"takes {least.bytes / 1e9:,.0f} GB, and {model.name} has {model.memory / 1e9:.0f} GB. Use a smaller "
                    "batch or context."
                )


def _end_to_end(
    bench: Bench,
    batch: int,
    context: int,
    request: BenchRequest,
    rows: Sequence[KernelRow],
    baselines: dict[str, Any],
) -> list[StepRow]:
    out: list[StepRow] = []
    for kernel in (k for k in ATTENTION if k in request.kernels):
        try:
            out += end_to_end_rows(bench, batch, context, kernel, rows, baselines)
        except (torch.OutOfMemoryError, RuntimeError) as reason:
            why = "does not fit into memory" if isinstance(reason, torch.OutOfMemoryError) else str(reason)[:160]
            out.append(StepRow(method=kernel, batch=batch, context=context, failed=why))
        torch.cuda.empty_cache()
    return out


def _results(
    request: BenchRequest,
    matrices: RowMatrices,
    rows: Sequence[KernelRow],
    memory: int,
    facts: dict[str, Any],
    complete: bool,
    extra: dict[str, Any],
) -> BenchResults:
    settings = asdict(request.settings) | {"sinks": SINKS, "bytes_per_token": sum(matrices.layout.row_bytes)}
    per_method = [
        row
        for context in request.contexts
        for batch in request.batches
        for row in memory_rows(request.shape, matrices, request.settings, batch, context, memory)
    ]
    return results_file(
        "profile",
        list(rows),
        provenance(**facts, seed=request.seed),
        complete=complete,
        shape=asdict(request.shape),
        settings=settings,
        device_memory=memory,
        memory=per_method,
        **extra,
    )
