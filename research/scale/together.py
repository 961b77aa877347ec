"""The same steps by one process and by several: time, bytes added up, and how far sums and spectra are apart.

Run as `torchrun --standalone --nproc-per-node N -m research.scale.together OUT.json MODEL STEPS WINDOW`: rows for 2, 4, … N.
The clock runs in the first process, from where all are ready until the sums are added up in it. One process's steps are
timed half before and half after the shared ones: a card's clock falls as it warms.
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
from spectralquant.calibration.first_pass import FirstPass, shares
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
WARM_UP = 4  # steps of every process: what the first ones compile and allocate is no part of any
ALONE_SHARE = 4  # one process does a quarter of the steps: a step takes it equally long
COMPARED = 8
COUNTED = (
    "the first pass: steps, waiting for the slowest process (wait_s) and adding up (add_up_s); before the clock: loading, "
    "making connections (connect_s), warming up; not done: keeping samples and checkpoints"
)
Row = dict[str, Any]


def groups(own: Processes, device: torch.device) -> dict[int, Processes | None]:
    """This process among the first 2, 4, … of all, connected; None where it is not one of them."""
    sizes = sorted({*(2**n for n in range(1, own.size.bit_length()) if 2**n < own.size), own.size})
    out: dict[int, Processes | None] = {}
    for size in sizes:
        if size == own.size:
            out[size] = own
            continue
        parts = [distributed.new_group(list(range(size)), timeout=TIMEOUT, backend=kind) for kind in (None, "gloo")]
        out[size] = Processes(own.rank, size, control=parts[1], group=parts[0]) if own.rank < size else None
        if (part := out[size]) is not None:
            part.connect(device)
    return out


def compare(run: CalibrationRun, own: Processes, keep: Callable[[list[Row]], None]) -> None:
    """Steps alone, then shared by 2, 4, … processes; `keep` gets the rows in the first process, first times, then more."""
    steps = run.settings.steps
    shared = groups(own, run.device)
    _pass(run, Processes(), WARM_UP)
    half = max(1, steps // ALONE_SHARE // 2)
    each = [_alone_s(run, own, half)]
    rows = []
    for part in shared.values():
        own.meet()
        if part is not None:
            rows.append(_shared(run, part))
    each.append(_alone_s(run, own, half))
    for row in rows:
        row |= {"alone_steps": 2 * half, "step_s_alone": sum(each) / 2, "step_s_alone_each": each}
        row["efficiency"] = row["step_s_alone"] * steps / (row["gpus"] * row["seconds_shared"])
    if own.first:
        keep(rows)
    _compare_sums(run, own, shared, rows, keep)


def _alone_s(run: CalibrationRun, own: Processes, steps: int) -> float:
    """Seconds of a step of the first process while the others wait; 0 in those."""
    own.meet()
    seconds = _pass(run, Processes(), steps)[0] / steps if own.first else 0.0
    own.meet()
    return round(seconds, 4)


def _shared(run: CalibrationRun, part: Processes) -> Row:
    steps = run.settings.steps
    part.seconds, part.waited, part.bytes = 0.0, 0.0, 0
    seconds, _ = _pass(run, part, steps)
    own_steps = len(shares(range(steps), part.size, [])[part.rank])
    each: list[Any] = [None] * part.size
    distributed.all_gather_object(
        each, round((seconds - part.waited - part.seconds) / own_steps, 4), group=part.control
    )
    return {
        "gpus": part.size,
        "ok": True,
        "measured": True,
        "counted": COUNTED,
        "steps": steps,
        "window": run.settings.window,
        "seconds_shared": round(seconds, 3),
        "step_s_shared": round(seconds / steps, 4),
        "step_s_of_processes": each,
        "wait_s": round(part.waited, 3),
        "add_up_s": round(part.seconds, 3),
        "added_bytes": part.bytes,
        "connect_s": round(part.connecting, 3),
        **device_facts(run.device),
    }


def _compare_sums(
    run: CalibrationRun,
    own: Processes,
    shared: dict[int, Processes | None],
    rows: list[Row],
    keep: Callable[[list[Row]], None],
) -> None:
    """How far the sums of several processes are from those of one, into the rows of the first process."""
    repeated = 0.0
    if own.first:
        repeated = _largest_difference(*(_pass(run, Processes(), REPEATED)[1] for _ in range(2)))
    with deterministic() as exact:
        count = max(own.size, min(COMPARED, run.settings.steps))
        alone = None
        if own.first:
            alone, exact = _alone(run, count, exact)
        exact = bool(own.agree(int(exact)))
        if not exact:
            torch.use_deterministic_algorithms(False)
        for number, part in enumerate(shared.values()):
            if part is not None:
                sums = _pass(run, part, count)[1]
                if own.first:
                    rows[number] |= _apart(run, alone, sums)
                    rows[number] |= {"compared_steps": count, "deterministic": exact}
                    rows[number] |= {"largest_difference_of_sums_of_two_equal_runs": repeated}
                    keep(rows)
            own.meet()


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
    own.meet()
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
