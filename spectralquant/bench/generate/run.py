"""`generate_results`: every cell of `sq profile --generate` as a results file."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from spectralquant.bench.end_to_end import whole_step_ms
from spectralquant.bench.generate.contenders import Contender, Dynamic, Growing, Hot, Place, Static
from spectralquant.bench.generate.first_calls import first_call_rows
from spectralquant.bench.generate.measure import decode_row, first_token_row
from spectralquant.bench.generate.plan import GRAPHS, Cell, GenerateRequest, cells_of
from spectralquant.bench.generate.summary import summary_of
from spectralquant.bench.inputs import CodeSettings
from spectralquant.models.load import LoadedModel
from spectralquant.models.shapes import ModelShape
from spectralquant.profile.model import CalibrationProfile
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import GenerateResults
from spectralquant.results.unfinished import NOTHING_KEPT, Kept

Row = dict[str, Any]
Progress = Callable[[str, int, int], None]
BATCHES_TRIED = (96, 80, 64, 56, 48, 40, 32, 24, 16, 14, 12, 10, 8, 4, 2, 1)
NO_ROOM = "does not fit into memory"


def generate_results(
    loaded: LoadedModel,
    profile: CalibrationProfile,
    shape: ModelShape,
    request: GenerateRequest,
    facts: Row,
    progress: Progress = lambda stage, done, total: None,
    save: Callable[[GenerateResults], None] = lambda result: None,
    kept: Kept = NOTHING_KEPT,
) -> GenerateResults:
    """Measure on the model's device. `save` gets the results file after every cell, `complete` false until the end; `kept`
    holds finished cells if the run ends early.
    """
    request.check(getattr(loaded.model.config, "max_position_embeddings", None))
    device = loaded.device
    rows: list[Row] = []

    def finish(complete: bool) -> GenerateResults:
        result = results_file(
            "generate",
            rows,
            provenance(**device_facts(device), model=loaded.name, **facts, **kept.facts()),
            complete=complete,
            settings={"new_tokens": request.new, "select": request.select, "window": 128, "sinks": 4},
            summary=summary_of(rows),
        )
        save(result)
        return result

    cells = list(cells_of(request, gpu=device.type == "cuda"))
    for done, cell in enumerate(cells):
        size = f", {cell.context} x {cell.batch or 'most'}" if cell.context else ""
        progress(f"{cell.method}{size}", done, len(cells))
        rows += kept.value(str(cell), functools.partial(_rows, cell, loaded, profile, shape, request))
        finish(False)
    return finish(True)


def _rows(
    cell: Cell, loaded: LoadedModel, profile: CalibrationProfile, shape: ModelShape, request: GenerateRequest
) -> list[Row]:
    """A cell's rows; wall_s: what the whole cell took, compilation and filling included."""
    begin = time.perf_counter()
    _free()
    same = {"kind": cell.kind, "method": cell.method}
    if cell.kind == "first_calls":
        rows = [same | row for row in first_call_rows(shape)]
    else:
        rows = [
            same | {"context": cell.context, "batch": cell.batch} | _measured(cell, loaded, profile, shape, request)
        ]
    seconds = time.perf_counter() - begin
    return [row | {"wall_s": seconds / len(rows)} for row in rows]


def _measured(
    cell: Cell, loaded: LoadedModel, profile: CalibrationProfile, shape: ModelShape, request: GenerateRequest
) -> Row:
    if cell.kind == "whole_step":
        settings = CodeSettings(share=request.select)
        return {"step_ms": whole_step_ms(shape, settings, cell.context, cell.batch, loaded.device)}
    if cell.kind != "capacity":
        return _try(cell, cell.batch, loaded, profile, request)
    for batch in BATCHES_TRIED:
        row = _try(cell, batch, loaded, profile, request)
        if "failed" not in row:
            return row | {"batch": batch}
    return row


def _try(cell: Cell, batch: int, loaded: LoadedModel, profile: CalibrationProfile, request: GenerateRequest) -> Row:
    device, vocab = loaded.device, min(loaded.model.config.vocab_size, 32000)
    prompt = cell.context - request.new
    _free()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        contender = _contender(cell.method, Place(loaded, profile, batch, cell.context), request.select)
        if cell.kind == "first_token":
            return first_token_row(contender, batch, prompt, vocab, device)
        return decode_row(contender, batch, prompt, request.new, vocab, device, stalls=cell.method in GRAPHS)
    except RuntimeError as error:
        if not _no_room(error):
            raise
        return {"failed": NO_ROOM}
    finally:
        contender = None
        if device.type == "cuda" and cell.method == "static_compiled":
            torch._dynamo.reset()


def _no_room(error: BaseException | None) -> bool:
    """Whether an error, or one that it wraps (a compiler's), is that memory is full."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
            return True
        error = error.__cause__
    return False


def _contender(method: str, place: Place, select: float) -> Contender:
    if method in GRAPHS:
        return Hot(place, select if method == "hot_select" else None)
    return (
        {"dynamic": Dynamic, "static_compiled": Static}[method](place) if method != "warm" else Growing(place, method)
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
