"""`generate_results`: every cell of `sq profile --generate` as a results file."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from spectralquant.bench.end_to_end import whole_step_ms
from spectralquant.bench.generate.contenders import Contender, Dynamic, Growing, Hot, Place, Static, least_tokens
from spectralquant.bench.generate.first_calls import first_call_rows
from spectralquant.bench.generate.measure import decode_row, first_token_row
from spectralquant.bench.generate.summary import summary_of
from spectralquant.bench.inputs import CodeSettings
from spectralquant.errors import InputError
from spectralquant.models.load import LoadedModel
from spectralquant.models.shapes import ModelShape
from spectralquant.profile.model import CalibrationProfile
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import GenerateResults
from spectralquant.results.unfinished import NOTHING_KEPT, Kept

Row = dict[str, Any]
Progress = Callable[[str, int, int], None]
COMPILED_CELLS = ((32768, 8), (32768, 1), (8192, 1), (8192, 8))
GROWING_CELLS = ((8192, 1),)
CAPACITY_CONTEXT = 32768
BATCHES_TRIED = (96, 80, 64, 56, 48, 40, 32, 24, 16, 14, 12, 10, 8, 4, 2, 1)


@dataclass(frozen=True)
class GenerateRequest:
    """What to measure: contexts (prompt and answer together), batches, new tokens, the share that an index selects."""

    contexts: tuple[int, ...] = (8192, 32768, 131072)
    batches: tuple[int, ...] = (1, 4, 8, 16)
    new: int = 128
    select: float = 0.05
    compiled: tuple[tuple[int, int], ...] = COMPILED_CELLS

    def check(self, limit: int | None) -> None:
        """Raise InputError for lengths that no contender takes."""
        least = least_tokens() + self.new
        if min(self.contexts) < least:
            raise InputError(f"--context must be at least {least:,}: below, nothing is compressed.")
        if limit is not None and max(self.contexts) > limit:
            raise InputError(f"--context {max(self.contexts):,} is beyond the model's {limit:,} positions.")


@dataclass(frozen=True)
class Cell:
    """A contender at a context and a batch; kind: decode, first_token or capacity."""

    kind: str
    method: str
    context: int
    batch: int


def cells_of(request: GenerateRequest) -> Iterator[Cell]:
    """Cells, the ones that are compared most first, so that a run that is cut off says what matters."""
    pairs = [(c, b) for c in request.contexts for b in request.batches]
    compiled = [pair for pair in request.compiled if pair in pairs]
    for context, batch in compiled:
        for method in ("static_compiled", "hot", "hot_select"):
            yield Cell("decode", method, context, batch)
    for context in request.contexts[:2]:
        for method in ("dynamic", "hot", "hot_select"):
            yield Cell("first_token", method, context, 1)
    for context, batch in pairs:
        for method in ("hot", "hot_select", "dynamic"):
            if (context, batch) not in compiled or method == "dynamic":
                yield Cell("decode", method, context, batch)
    for context, batch in GROWING_CELLS:
        if (context, batch) in pairs:
            yield Cell("decode", "warm", context, batch)
    if CAPACITY_CONTEXT in request.contexts:
        for method in ("hot", "dynamic"):
            yield Cell("capacity", method, CAPACITY_CONTEXT, 0)


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

    if device.type == "cuda":
        for batch in (b for b in request.batches if b in (1, 8) and 32768 in request.contexts):
            settings = CodeSettings(share=request.select)
            whole = functools.partial(whole_step_ms, shape, settings, 32768, batch, device)
            step = kept.value(f"whole step, batch {batch}", whole)
            rows.append({"kind": "whole_step", "method": "hot", "context": 32768, "batch": batch, "step_ms": step})
            _free()
        rows += kept.value("first calls", functools.partial(first_call_rows, shape))
    cells = list(cells_of(request))
    for done, cell in enumerate(cells):
        progress(f"{cell.method}, {cell.context} x {cell.batch or 'most'}", done, len(cells))
        measured = kept.value(str(cell), functools.partial(_measure, cell, loaded, profile, request))
        rows.append(
            {"kind": cell.kind, "method": cell.method, "context": cell.context, "batch": cell.batch, **measured}
        )
        finish(False)
    return finish(True)


def _measure(cell: Cell, loaded: LoadedModel, profile: CalibrationProfile, request: GenerateRequest) -> Row:
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
        return decode_row(contender, batch, prompt, request.new, vocab, device)
    except torch.OutOfMemoryError:
        return {"failed": "does not fit into memory"}
    finally:
        contender = None
        if device.type == "cuda" and cell.method == "static_compiled":
            torch._dynamo.reset()


def _contender(method: str, place: Place, select: float) -> Contender:
    if method in ("hot", "hot_select"):
        return Hot(place, select if method == "hot_select" else None)
    return (
        {"dynamic": Dynamic, "static_compiled": Static}[method](place) if method != "warm" else Growing(place, method)
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
