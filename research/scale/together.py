"""The same steps by one process and by several: time, bytes added up, and how far sums and spectra are apart.

Run as `torchrun --standalone --nproc-per-node N -m research.scale.together OUT.json MODEL STEPS WINDOW`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from spectralquant.calibration.basis.heads import head_spectra
from spectralquant.calibration.first_pass import FirstPass
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.calibration.sums import CalibrationSums
from spectralquant.files import write_json
from spectralquant.models.load import LoadedModel, load_model
from spectralquant.processes import Processes, processes
from spectralquant.provenance import device_facts, provenance
from spectralquant.surroundings import own_run
from spectralquant.text.read import load_text
from spectralquant.text.tokens import TokenText, tokenize

REPEATED = 2


def compare(
    loaded: LoadedModel, text: TokenText, settings: CalibrationSettings, own: Processes
) -> dict[str, Any] | None:
    """Steps alone, then shared; a row in the first process."""
    run = CalibrationRun(loaded, text, settings, "text", None, False, text, lambda stage, done, total: None)
    warm = _pass(run, Processes(), 2)  # what a first step compiles and allocates is no part of either
    del warm
    alone = seconds_alone = None
    repeated = 0.0
    if own.first:
        repeated = _largest_difference(*(_pass(run, Processes(), REPEATED)[1] for _ in range(2)))
        seconds_alone, alone = _pass(run, Processes(), settings.steps)
    own.agree(0)
    seconds, shared = _pass(run, own, settings.steps)
    if not own.first:
        return None
    apart = _largest_difference(alone, shared)
    spectra = []
    for sums in (alone, shared):
        sums.finish()
        spectra.append(head_spectra(loaded.geometry, sums.moments, sums.entropy.mean, 1.0, use_metric=True))
    level = spectra[0].variance.flatten().quantile(0.5).sqrt() * 12**0.5
    ranks = [(s.variance > level**2 / 12).sum(-1) for s in spectra]
    difference = (spectra[1].variance - spectra[0].variance).abs() / spectra[0].variance.amax(-1, keepdim=True)
    return {
        "gpus": own.size,
        "ok": True,
        "measured": True,
        "steps": settings.steps,
        "window": settings.window,
        "seconds_alone": round(seconds_alone, 3),
        "seconds_shared": round(seconds, 3),
        "step_s_alone": round(seconds_alone / settings.steps, 4),
        "step_s_shared": round(seconds / settings.steps, 4),
        "efficiency": seconds_alone / (own.size * seconds),
        "add_up_s": round(own.seconds, 3),
        "added_bytes": own.bytes,
        "largest_difference_of_sums": apart,
        "largest_difference_of_sums_of_two_equal_runs": repeated,
        "largest_difference_of_head_spectra": float(difference.max()),
        "largest_difference_of_ranks": int((ranks[1] - ranks[0]).abs().max()),
        **device_facts(loaded.device),
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
    """Seconds of the first pass without samples, and its sums."""
    settings = run.settings
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
    """Load, compare, write a row and its provenance."""
    with processes() as (own, device):
        loaded = load_model(model, device=device, dtype="auto", offline=True)
        settings = CalibrationSettings(steps=int(steps), window=int(window), held_out_windows=1)
        need = settings.steps * settings.window + 2 * settings.held_out_window
        text = tokenize(loaded.tokenizer, load_text("builtin:pydoc", offline=True), need)
        with own_run(loaded.model):
            row = compare(loaded, text, settings, own)
    if row is not None:
        write_json(out, row | {"model": model, "provenance": provenance()})


if __name__ == "__main__":
    main(*sys.argv[1:])
