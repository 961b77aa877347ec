"""What the headline study measures, part by part: profiles of every text, and every method on every text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from research.windows import HELD_OUT, scored_windows, split_windows
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.calibration.solve import Trials, choose_centroids
from spectralquant.evaluation.compare import prompt_tokens
from spectralquant.evaluation.match import matched
from spectralquant.evaluation.measure import measure
from spectralquant.evaluation.tiers import measure_tiers
from spectralquant.methods.coding.spectral import tier_method
from spectralquant.methods.context import MethodContext
from spectralquant.methods.eviction.evictor import PROMPT, STREAMING
from spectralquant.methods.grouped import GroupedMethod
from spectralquant.methods.registry import parse
from spectralquant.models.load import LoadedModel
from spectralquant.origin.used_code import used_code
from spectralquant.profile.model import CalibrationProfile
from spectralquant.results.quality import MethodRow
from spectralquant.results.studies import HeadlineRow
from spectralquant.text.tokens import TokenText, tokens_sha256

Progress = Callable[[str, int, int], None]
GENERAL = "general"
RIVALS = (
    "kvtc",
    "kivi",
    "turboquant:bits=4",
    "turboquant:bits=3",
    "h2o:keep=0.5,mode=streaming",
    "h2o:keep=0.5,mode=prompt",
    "snapkv:keep=0.5,mode=prompt",
    "expected_attention:keep=0.5,mode=prompt",
)
"""Budgets around the KL of the study. Evicting methods at their most generous budget: where that is not good enough, none is."""


@dataclass(frozen=True)
class HeadlineStudy:
    """steps windows of `window` tokens calibrate a profile, at most what a text has; `windows` are scored, at most what its
    report part has. ratios: payload ratios that cold tiers are fitted for, with an own profile and with another's.
    """

    steps: int = 80
    window: int = 2048
    windows: int = 24
    kl: float = 0.01
    ratios: tuple[float, ...] = (50, 90)
    other_ratios: tuple[float, ...] = (12, 35)
    rivals: tuple[str, ...] = RIVALS
    part: str = "report"

    def steps_of(self, text: TokenText) -> int:
        """Calibration windows of a text."""
        return min(self.steps, len(split_windows(text, self.window).calibration) - HELD_OUT)

    def scored(self, text: TokenText) -> Tensor:
        """The windows of a text that are scored."""
        count = min(self.windows, len(getattr(split_windows(text, self.window), self.part)))
        return scored_windows(text, self.steps_of(text), self.window, count, self.part)


def profile_path(folder: Path, model: str, name: str, ratio: float) -> Path:
    """Where a cold tier of a text lies while the study runs."""
    return folder / f"{model}-{name}-{ratio:g}"


def fit(
    loaded: LoadedModel, text: TokenText, name: str, stems: dict[float, Path], study: HeadlineStudy, progress: Progress
) -> dict[str, Any]:
    """Calibrate on the first windows of a text and keep a profile a ratio."""
    steps = study.steps if name == GENERAL else study.steps_of(text)
    settings = CalibrationSettings(steps=steps, window=study.window, held_out_windows=1, held_out_window=study.window)
    run = CalibrationRun(loaded, text, settings, name, None, False, None, progress)
    sums, samples = run.first_pass()
    fitter = run.cold_fitter(sums, samples)
    sizes = {}
    for ratio, stem in stems.items():
        tier, report = fitter.fit(fitter.step_for_ratio(ratio))
        tier = choose_centroids(tier, Trials(loaded, run.held_out, measure_tiers, lambda *_: None))[0]
        profile = run.assemble(sums, {"cold": tier}, {"cold": run.cold_summary(ratio, report)})
        profile.seal()
        profile.save(stem)
        sizes[f"{ratio:g}"] = profile.sidecar.tensor_bytes
    return {
        "text": name,
        "steps": steps,
        "profile_bytes": sizes,
        "calibration_sha256": tokens_sha256(run.windows),
        "shares": [vars(share) for share in text.shares(steps * text.body(study.window))],
        "code": used_code(),
    }


def score(
    loaded: LoadedModel,
    text: TokenText,
    name: str,
    profiles: dict[str, list[Path]],
    study: HeadlineStudy,
    progress: Progress,
) -> dict[str, Any]:
    """Spectral with every profile (`own`, `general`, `foreign …`: one path a ratio) and the rivals, on the same windows.

    Methods that choose tokens once a prompt are measured in that protocol too, and spectral with its own profile beside them.
    """
    windows = study.scored(text)
    points: list[MethodRow] = []
    sizes: dict[str, dict[float, int]] = {}
    for kind, stems in profiles.items():
        sizes[kind] = {ratio_of(stem): CalibrationProfile.load(stem).sidecar.tensor_bytes for stem in stems}
        points += _rows(loaded, windows, spectral_methods(loaded, stems, kind), name, progress)
    calibration = split_windows(text, study.window).calibration[: study.steps_of(text)]
    context = MethodContext(loaded, None, calibration, 0)
    specs = [parse(rival) for rival in study.rivals]
    if methods := [spec.build(context) for group in specs for spec in group if spec.mode in (None, STREAMING)]:
        rows = _rows(loaded, windows, methods, name, progress)
        sizes |= rivals_profiles(methods, rows)
        points += rows
    if once := [spec.build(context) for group in specs for spec in group if spec.mode == PROMPT]:
        points += _rows(
            loaded, windows, [*spectral_methods(loaded, profiles["own"], "own"), *once], name, progress, PROMPT
        )
    return {
        "text": name,
        "rows": [row.as_json() for row in at_equal_kl(points, study.kl, sizes)],
        "points": [row.as_json() for row in points],
        "evaluation_sha256": tokens_sha256(windows),
        "code": used_code(),
    }


def rivals_profiles(methods: Sequence[Any], rows: Sequence[MethodRow]) -> dict[str, dict[float, int]]:
    """Bytes of what KVTC shares between requests, by the payload ratio of its budgets: in fp16, the means of keys and values and
    the components that its code keeps.
    """
    out: dict[float, int] = {}
    for method, row in zip(methods, rows, strict=True):
        if row.method == "kvtc":
            parts = method.parts.values() if isinstance(method, GroupedMethod) else [method]
            kept = [(sum(g.stop - g.start for g in part.groups), len(part.bases[0].mean)) for part in parts]
            out[row.payload_ratio] = sum(2 * (live + 2) * width for live, width in kept)
    return {"kvtc": out}


def at_equal_kl(points: Sequence[MethodRow], kl: float, sizes: dict[str, dict[float, int]]) -> list[HeadlineRow]:
    """A row a method and profile: its ratio at this KL, and the bytes of the profile nearest to it."""
    first = points[0]
    rows = []
    for match in matched(points, kl):
        words = match.method.split()
        profile = " ".join(words[2:]) if words[0] == "spectral" else None
        ratio = match.payload_ratio
        known = sizes.get(profile or match.method, {})
        nearest = min(known, key=lambda r: abs(r - ratio)) if known and ratio is not None else None
        rows.append(
            HeadlineRow(
                model=first.model,
                text=first.text,
                method=words[0] if profile else match.method,
                mode=match.mode,
                profile=profile,
                kl_nats=kl,
                payload_ratio=ratio,
                bound=match.bound,
                profile_bytes=None if nearest is None else known[nearest],
                context=match.context,
                n_tokens=first.n_tokens,
                n_windows=first.n_windows,
            )
        )
    return rows


def ratio_of(stem: Path) -> float:
    """The ratio that a profile of `profile_path` was fitted for."""
    return float(stem.name.rpartition("-")[2])


def spectral_methods(loaded: LoadedModel, stems: Sequence[Path], kind: str) -> list[Any]:
    """Methods of kept profiles, one a ratio."""
    tiers = {ratio_of(stem): CalibrationProfile.load(stem).tier("cold") for stem in stems}
    return [tier_method(tier, loaded, variant=kind, target_ratio=ratio) for ratio, tier in tiers.items()]


def _rows(
    loaded: LoadedModel,
    windows: Tensor,
    methods: list[Any],
    name: str,
    progress: Progress,
    mode: str = STREAMING,
) -> list[MethodRow]:
    prompt = prompt_tokens(windows.shape[1]) if mode == PROMPT else 0
    tell = functools.partial(progress, f"{name}: scoring, {mode}")
    found = measure(loaded.model, loaded.geometry, windows, methods, tell, prompt=prompt)
    return [m.row(loaded.geometry, loaded.name, windows.shape[1]).updated(text=name) for m in found]
