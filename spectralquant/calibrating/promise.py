"""Which error keeps which KL: text of several kinds, coded with every block held to an error (see `profile.promises`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from spectralquant.calibrating.held_errors import HeldErrors, RestoredErrors, StreamedErrors
from spectralquant.calibration.run import CalibrationRun
from spectralquant.errors import SourceError
from spectralquant.geometry import BLOCK
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.promises import error_limit
from spectralquant.profile.schema import ErrorPoint
from spectralquant.text.read import load_text
from spectralquant.text.recipes import mix_parts
from spectralquant.text.tokens import tokenize

LEVELS = (0.3, 0.6, 1.15)
WINDOW = 8 * BLOCK
SKIPPED = 6


def promise(profile: CalibrationProfile, run: CalibrationRun) -> None:
    """Note in a profile whose cold tier has an error target what errors cost, and what the target does on held-out text."""
    loaded, settings = run.loaded, run.settings
    if "cold" not in profile.tiers or settings.target("cold").quantity != "error":
        return
    search, report = run.held_out.chunk(2)
    summary, kl = profile.sidecar.tiers["cold"], settings.target("cold").value
    part = (profile.tier("cold"), profile.heads, summary.step, loaded)
    held = RestoredErrors(*part) if settings.serving else StreamedErrors(*part)
    summary.errors = error_table(held, promise_texts(loaded, search), run.progress)
    told = lambda done, total: run.progress("held-out measurement", done, total)  # noqa: E731
    row = held.measure(report, [error_limit(summary, kl)], told, bound=kl)[0].row(
        loaded.geometry, loaded.name, report.shape[1]
    )
    summary.measured = {k: v for k, v in row.items() if k not in ("encode_s", "decode_s", "time_unit")}


def promise_texts(
    loaded: LoadedModel, held_out: Tensor, report: Callable[[str], None] = lambda _: None
) -> dict[str, Tensor]:
    """Windows int64 `[n, T]` by kind of text: those held out, one by one (of a mix each is from one text), and one of each
    kind that `builtin:mix` knows.
    """
    windows = {f"held-out window {i + 1}": window[None] for i, window in enumerate(held_out)}
    for name in mix_parts(report):
        try:
            every = tokenize(loaded.tokenizer, load_text(name), (SKIPPED + 2) * WINDOW, report).windows(WINDOW)
        except SourceError:
            continue
        windows[name] = every[-1:]
    return windows


def error_table(
    held: HeldErrors, texts: Mapping[str, Tensor], progress: Callable[[str, int, int], None]
) -> list[ErrorPoint]:
    """Points around the error of the first text as calibrated."""
    first = next(iter(texts.values()))
    middle = held.as_calibrated(first, lambda d, t: progress("errors as calibrated", d, t))
    limits = [middle * level for level in LEVELS]
    points = []
    for done, (name, windows) in enumerate(texts.items()):
        progress("errors and their KL", done, len(texts))
        with torch.no_grad():
            found = held.measure(windows, limits)
        points += [ErrorPoint(text=name, error=e, kl=max(m.kl, 1e-9)) for e, m in zip(limits, found, strict=True)]
    return points
