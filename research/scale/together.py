"""The same steps by one process and by several: time, bytes added up, and how far sums and spectra are apart.

Run as `torchrun --standalone --nproc-per-node N -m research.scale.together OUT.json MODEL STEPS WINDOW`: rows for 2, 4, … N.
A GPU's own work differs from run to run (attention's backward pass adds up in any order), so results are compared with
deterministic algorithms, where two equal runs agree to the last bit and only what sharing changes is left; how far two
equal runs are apart without them stands beside.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import distributed

from spectralquant.calibration.basis.heads import head_spectra
from spectralquant.calibration.first_pass import FirstPass
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.calibration.sums import CalibrationSums
from spectralquant.files import write_json
from spectralquant.models.load import load_model
from spectralquant.processes import TIMEOUT, Processes, processes
from spectralquant.provenance import device_facts, provenance
from spectralquant.surroundings import own_run
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

REPEATED = 2
ALONE_SHARE = 4  # one process does a quarter of the steps: a step takes it equally long
COMPARED_SHARE = 6
Row = dict[str, Any]


def groups(own: Processes) -> dict[int, Processes | None]:
    """This process among the first 2, 4, … of all; None where it is not one of them."""
    sizes = sorted({*(2**n for n in range(1, own.size.bit_length()) if 2**n < own.size), own.size})
    out: dict[int, Processes | None] = {}
    for size in sizes:
        if size == own.size:
            out[size] = own
            continue
        parts = [distributed.new_group(list(range(size)), timeout=TIMEOUT, backend=kind) for kind in (None, "gloo")]
        out[size] = Processes(own.rank, size, control=parts[1], group=parts[0]) if own.rank < size else None
    return out


def compare(run: CalibrationRun, own: Processes, keep: Callable[[list[Row]], None]) -> None:
    """Steps alone, then shared by 2, 4, … processes; `keep` gets the rows in the first process, first times, then more."""
    steps = run.settings.steps
    shares = groups(own)
    _pass(run, Processes(), 2)  # what a first step compiles and allocates is no part of any
    alone_s, repeated = 0.0, 0.0
    if own.first:
        alone_s = _pass(run, Processes(), max(1, steps // ALONE_SHARE))[0] / max(1, steps // ALONE_SHARE)
        repeated = _largest_difference(*(_pass(run, Processes(), REPEATED)[1] for _ in range(2)))
    own.agree(0)
    rows = []
    for size, part in shares.items():
        if part is not None:
            seconds, shared = _pass(run, part, steps)
            del shared
            rows.append(_timed(run, part, alone_s, seconds))
        own.agree(size)
    if own.first:
        keep(rows)
    with deterministic() as exact:
        count = max(own.size, steps // COMPARED_SHARE)
        alone = None
        if own.first:
            alone, exact = _alone(run, count, exact)
        exact = bool(own.agree(int(exact)))
        if not exact:
            torch.use_deterministic_algorithms(False)
        for number, part in enumerate(shares.values()):
            if part is not None:
                shared = _pass(run, part, count)[1]
                if own.first:
                    rows[number] |= _apart(run, alone, shared)
                    rows[number] |= {"compared_steps": count, "deterministic": exact}
                    rows[number] |= {"largest_difference_of_sums_of_two_equal_runs": repeated}
                    keep(rows)
            own.agree(number)


@contextlib.contextmanager
def deterministic() -> Iterator[bool]:
    """Only algorithms that always add up in one order; yields True."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield True
    finally:
        torch.use_deterministic_algorithms(False)


def _alone(run: CalibrationRun, count: int, exact: bool) -> tuple[CalibrationSums, bool]:
    try:
        return _pass(run, Processes(), count)[1], exact
    except RuntimeError as error:  # an operation that has no deterministic algorithm: its message says which
        print(f"without deterministic algorithms: {error}", file=sys.stderr)
        torch.use_deterministic_algorithms(False)
        return _pass(run, Processes(), count)[1], False


def _timed(run: CalibrationRun, part: Processes, alone_s: float, seconds: float) -> Row:
    steps = run.settings.steps
    return {
        "gpus": part.size,
        "ok": True,
        "measured": True,
        "steps": steps,
        "alone_steps": max(1, steps // ALONE_SHARE),
        "window": run.settings.window,
        "seconds_shared": round(seconds, 3),
        "step_s_alone": round(alone_s, 4),
        "step_s_shared": round(seconds / steps, 4),
        "efficiency": alone_s * steps / (part.size * seconds),
        "add_up_s": round(part.seconds, 3),
        "added_bytes": part.bytes,
        **device_facts(run.device),
    }


def _apart(run: CalibrationRun, alone: CalibrationSums, shared: CalibrationSums) -> Row:
    apart = _largest_difference(alone, shared)
    spectra = []
    for sums in (alone, shared):
        if sums.moments[0].least_metric == 0:
            sums.finish()
        spectra.append(head_spectra(run.geometry, sums.moments, sums.entropy.mean, 1.0, use_metric=True))
    level = spectra[0].variance.flatten().quantile(0.5).sqrt() * 12**0.5
    ranks = [(s.variance > level**2 / 12).sum(-1) for s in spectra]
    difference = (spectra[1].variance - spectra[0].variance).abs() / spectra[0].variance.amax(-1, keepdim=True)
    return {
        "largest_difference_of_sums": apart,
        "largest_difference_of_head_spectra": float(difference.max()),
        "largest_difference_of_ranks": int((ranks[1] - ranks[0]).abs().max()),
    }


def _largest_difference(first: CalibrationSums, second: CalibrationSums) -> float:
    """Over all sums, relative to the largest entry of each: what the order of additions and of a GPU's own work changes."""
    ours, theirs = first.state(), second.state()
    return max(
        float((theirs[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1e-30))
        for name, tensor in ours.items()
        if tensor.is_floating_point() and tensor.numel() > 1
    )


def _pass(run: CalibrationRun, own: Processes, steps: int) -> tuple[float, CalibrationSums]:
    """Seconds of the first pass over some steps without samples, and its sums."""
    settings = replace(run.settings, steps=steps)
    sums = CalibrationSums(run.loaded.model, run.geometry, run.span, run.features, settings)
    shown = lambda stage, done, total: None  # noqa: E731
    work = FirstPass(run.loaded, run.windows, settings, sums, run.far, run._offset, None, own, shown)
    _wait(run)
    start = time.perf_counter()
    work.share(0, steps, [], {})
    _wait(run)
    return time.perf_counter() - start, sums


def _wait(run: CalibrationRun) -> None:
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)


def main(out: str, model: str, steps: str, window: str) -> None:
    """Load, compare, write rows and their provenance."""
    facts = {"model": model, "provenance": provenance()}
    with processes() as (own, device):
        loaded = load_model(model, device=device, dtype="auto", offline=True)
        settings = CalibrationSettings(steps=int(steps), window=int(window), held_out_windows=1)
        need = settings.steps * settings.window + 2 * settings.held_out_window
        text = tokenize(loaded.tokenizer, load_text("builtin:pydoc", offline=True), need)
        with own_run(loaded.model):
            run = CalibrationRun(loaded, text, settings, "text", None, False, text, lambda stage, done, total: None)
            compare(run, own, lambda rows: write_json(out, [row | facts for row in rows]))


if __name__ == "__main__":
    main(*sys.argv[1:])
