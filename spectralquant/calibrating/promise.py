"""Which error keeps which KL: text of several kinds, coded with every block held to an error (see `profile.promises`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from spectralquant.calibrating.check import text_cost
from spectralquant.calibrating.held_errors import HeldErrors, RestoredErrors, StreamedErrors
from spectralquant.calibration.run import CalibrationRun
from spectralquant.errors import SourceError
from spectralquant.geometry import BLOCK
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.promises import MEASURE, ErrorLimits, error_limits
from spectralquant.profile.schema import ErrorPoint
from spectralquant.text.read import load_text
from spectralquant.text.recipes import mix_parts
from spectralquant.text.standins import STAND_INS
from spectralquant.text.tokens import tokenize

LEVELS = (0.1, 0.3, 0.9)
WINDOW = 8 * BLOCK
SKIPPED = 6
SAMPLED, CHARACTERS = 20, 24_000


def promise(profile: CalibrationProfile, run: CalibrationRun) -> None:
    """Note in a profile with a cold tier the error on held-out text; and where its target is an error, what errors cost, and
    what the target does on held-out text.
    """
    loaded, settings = run.loaded, run.settings
    if "cold" not in profile.tiers:
        return
    search, report = run.held_out.chunk(2)
    summary, target = profile.sidecar.tiers["cold"], settings.target("cold")
    summary.error_measure = MEASURE
    if not settings.serving:
        note_home(profile, loaded, report)
    if target.quantity != "error":
        return
    part = (profile.tier("cold"), profile.heads, summary.step, loaded)
    held = RestoredErrors(*part) if settings.serving else StreamedErrors(*part)
    summary.errors = error_table(held, promise_texts(loaded, search), run.progress)
    told = lambda done, total: run.progress("held-out measurement", done, total)  # noqa: E731
    row = held.measure(report, [error_limits(summary, target.value)], told, bound=target.value)[0].row(
        loaded.geometry, loaded.name, report.shape[1]
    )
    summary.measured = {k: v for k, v in row.items() if k not in ("encode_s", "decode_s", "time_unit")}


def note_home(profile: CalibrationProfile, loaded: LoadedModel, windows: Tensor) -> None:
    """Note error and KL of held-out text as calibrated: what other text is compared with."""
    summary = profile.sidecar.tiers["cold"]
    kl = (summary.measured or {}).get("kl_nats")
    if kl and summary.step is not None:
        row = text_cost(loaded, profile, windows, "held-out text", None)
        summary.as_calibrated = ErrorPoint(text=row.text, error=row.error, kl=kl)


def promise_texts(
    loaded: LoadedModel, held_out: Tensor, report: Callable[[str], None] = lambda _: None, window: int = WINDOW
) -> dict[str, Tensor]:
    """Windows int64 `[n, T]` by kind of text: those held out, one by one (of a mix each is from one text), one of each
    kind that `builtin:mix` knows, and stand-ins for other languages and scripts.
    """
    windows = {f"held-out window {i + 1}": window[None] for i, window in enumerate(held_out)}
    for name in mix_parts(report):
        try:
            every = tokenize(loaded.tokenizer, load_text(name), (SKIPPED + 2) * window, report).windows(window)
        except SourceError:
            continue
        windows[name] = every[-1:]
    sample = "\n\n".join(itertools.islice(load_text("builtin:pydoc"), SAMPLED))[:CHARACTERS]
    for name, change in STAND_INS.items():
        windows[name] = tokenize(loaded.tokenizer, [change(sample)], None, report).windows(window)[:1]
    return windows


def error_table(
    held: HeldErrors, texts: Mapping[str, Tensor], progress: Callable[[str, int, int], None]
) -> list[ErrorPoint]:
    """Points of every kind of text; second stages around the error of the first as calibrated."""
    points: list[ErrorPoint] = []
    for done, (name, windows) in enumerate(texts.items()):
        progress("errors and their KL", done, len(texts))
        points += kind_points(held, name, windows, points[0].error if points else None)
    return points


@torch.no_grad()
def kind_points(held: HeldErrors, name: str, windows: Tensor, home: float | None) -> list[ErrorPoint]:
    """Points of one kind: as calibrated, and with second stages around the error `home` (None: its own)."""
    plain, error = held.as_calibrated(windows)
    limits = [ErrorLimits(-1.0, (error if home is None else home) * level) for level in LEVELS]
    found = held.measure(windows, limits)
    second = [(each.second, m.kl) for each, m in zip(limits, found, strict=True)]
    return [
        ErrorPoint(text=name, error=error, kl=max(plain.kl, 1e-9)),
        *(ErrorPoint(text=name, error=e, kl=max(kl, 1e-9), second=True) for e, kl in second),
    ]
