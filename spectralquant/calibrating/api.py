"""`calibrate` and `calibrate_model`: a calibration run whose tiers the evaluation harness measures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from spectralquant.calibrating.promise import promise
from spectralquant.calibrating.serving import measure_serving_tiers
from spectralquant.calibration.capture.passes import require_gradients
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.calibration.targets import Target, parse_target
from spectralquant.claims import claimed
from spectralquant.evaluation.tiers import measure_tiers
from spectralquant.hooks.wrappers import usable_model
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.processes import Processes
from spectralquant.profile.model import CalibrationProfile
from spectralquant.surroundings import own_run
from spectralquant.text.tokens import TokenText, tokenize


def calibrate_model(
    loaded: LoadedModel,
    text: TokenText,
    settings: CalibrationSettings,
    *,
    text_name: str = "text",
    out: str | Path | None = None,
    resume: bool = False,
    held_out: TokenText | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    processes: Processes | None = None,
) -> CalibrationProfile | None:
    """Calibrate a model on text; with `out` the run is checkpointed there and the profile saved.

    Held-out windows are taken from `held_out`, or from `text` after the calibration windows. Of several `processes` that
    call this with the same arguments the first returns the profile, and the others None.

    Raises:
        SourceError: too little text. InputError: nothing to resume, or options that cannot be met.
        UnsupportedModelError: see `usable_model`; or weights that gradients cannot flow past.
        LostProcessError: another process ended.
    """
    model = usable_model(loaded.model, spread=True)
    loaded = replace(loaded, model=model, geometry=settings.coded_geometry(loaded.geometry))
    if settings.metric == "fisher":
        require_gradients(loaded.model)
    others = processes is not None and not processes.first
    claim = contextlib.nullcontext() if out is None or others else claimed(out, "--out")
    with claim, own_run(loaded.model):
        run = CalibrationRun(loaded, text, settings, text_name, out, resume, held_out, progress, processes)
        return run.execute(measure_serving_tiers if settings.serving else measure_tiers, promise)


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    text: str | Iterable[str],
    *,
    steps: int = 100,
    target: Target | str | None = None,
    settings: CalibrationSettings | None = None,
    name: str | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    processes: Processes | None = None,
) -> CalibrationProfile | None:
    """Calibrate `model` on `text` (one string or many documents) and return its profile (not yet saved).

    `target` is what the first tier is solved for, as `Ratio(33)` or `"kl=0.01"`; everything else is in `settings`. The
    model may be wrapped (`torch.compile`, DDP, PEFT), and its layers may lie on several devices (`device_map="auto"`). It runs as it was loaded, in evaluation mode and without the
    caller's autocast or inference mode; its modes and gradient flags are as before when this returns. Several
    `processes` (see `spectralquant.processes`) share the steps; all but the first get None.

    Raises:
        UnsupportedModelError, SourceError, InputError: see their messages.
    """
    settings = replace(settings or CalibrationSettings(), steps=steps)
    if target is not None:
        goal = parse_target(target) if isinstance(target, str) else target
        settings = replace(settings, targets={**settings.targets, settings.tiers[0]: goal})
    model = usable_model(model, spread=True)
    name = name or getattr(model, "name_or_path", "") or type(model).__name__
    loaded = LoadedModel(name, model, tokenizer, probe_geometry(model))
    documents = [text] if isinstance(text, str) else text
    need = settings.steps * settings.window + 2 * settings.held_out_windows * settings.held_out_window
    tokens = tokenize(tokenizer, documents, need)
    return calibrate_model(loaded, tokens, settings, text_name="text", progress=progress, processes=processes)
