"""What the headline study measures, part by part: profiles of every text, and every method on every text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from research.headline.curves import Budgets, Curve, at_kl, walk
from research.windows import HELD_OUT, scored_windows, split_windows
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.calibration.solve import Trials, choose_centroids
from spectralquant.evaluation.compare import prompt_tokens
from spectralquant.evaluation.match import matched
from spectralquant.evaluation.measure import measure
from spectralquant.evaluation.tiers import measure_tiers
from spectralquant.methods.coding.kvtc import Pca
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
ProfileAt = Callable[[str, float], CalibrationProfile]
"""The profile of a kind (`own`, `general`, `foreign ...`) at a payload ratio."""
GENERAL, OWN = "general", "own"
KEEPS = (0.95, 0.8, 0.5, 0.3, 0.15)
RIVALS = (
    Budgets("kvtc:ratio={}", (2, 3, 4, 6, 8, 16, 32), 8),
    Budgets("kivi:bits={}", (8, 6, 4, 3, 2), 3),
    Budgets("turboquant:bits={}", (8, 6, 5, 4, 3.5, 3, 2), 3.5),
    Budgets("turboquant:bits={},outliers=0.0625,outlier_bits=8", (6, 5, 4, 3, 2), 4),
    Budgets("h2o:keep={},mode=streaming", KEEPS, 0.5),
    Budgets("h2o:keep={},mode=prompt", KEEPS, 0.8),
    Budgets("snapkv:keep={},mode=prompt", KEEPS, 0.8),
    Budgets("expected_attention:keep={},mode=prompt", KEEPS, 0.8),
)
"""Each is measured at its first budget, then finer or coarser until the study's KL lies between two. A method that is not that good
with 95 % of the tokens saves nothing at that KL.
"""


@dataclass(frozen=True)
class HeadlineStudy:
    """steps windows of `window` tokens calibrate a profile, at most what a text has; `windows` are scored, at most what its
    report part has. ratios: payload ratios that cold tiers are fitted for, with an own profile and with another's; where the KL is
    at none of them, tiers for half the lowest or twice the highest are fitted while a text is scored.
    """

    steps: int = 80
    window: int = 2048
    windows: int = 24
    kl: float = 0.01
    ratios: tuple[float, ...] = (20, 38, 75, 150)
    other_ratios: tuple[float, ...] = (10, 20, 38, 75)
    rivals: tuple[Budgets, ...] = RIVALS
    part: str = "report"

    def ratios_of(self, kind: str) -> tuple[float, ...]:
        """Payload ratios that are fitted for a kind of profile."""
        return self.ratios if kind == OWN else self.other_ratios

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
    loaded: LoadedModel,
    text: TokenText,
    name: str,
    ratios: Sequence[float],
    keep: Callable[[float, CalibrationProfile], None],
    study: HeadlineStudy,
    progress: Progress,
) -> dict[str, Any]:
    """Calibrate on the first windows of a text, and hand over a profile a ratio."""
    steps = study.steps if name == GENERAL else study.steps_of(text)
    settings = CalibrationSettings(steps=steps, window=study.window, held_out_windows=1, held_out_window=study.window)
    run = CalibrationRun(loaded, text, settings, name, None, False, None, progress)
    sums, samples = run.first_pass()
    fitter = run.cold_fitter(sums, samples)
    sizes = {}
    for ratio in ratios:
        tier, report = fitter.fit(fitter.step_for_ratio(ratio))
        tier = choose_centroids(tier, Trials(loaded, run.held_out, measure_tiers, lambda *_: None))[0]
        profile = run.assemble(sums, {"cold": tier}, {"cold": run.cold_summary(ratio, report)})
        profile.seal()
        keep(ratio, profile)
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
    kinds: Sequence[str],
    profile_at: ProfileAt,
    study: HeadlineStudy,
    progress: Progress,
) -> dict[str, Any]:
    """Spectral with every kind of profile and the rivals, on the same windows, each at budgets around the study's KL.

    Methods that choose tokens once a prompt are measured in that protocol too, and spectral with its own profile beside them.
    at_kl: by method the curve and the budget nearest to the KL, in the streaming protocol.
    """
    windows = study.scored(text)
    context = SharedPca(loaded, None, split_windows(text, study.window).calibration[: study.steps_of(text)], 0)

    def spectral(kind: str, first: float | None = None) -> Curve:
        ratios = study.ratios_of(kind)
        every = (ratios[0] / 2, *ratios, 2 * ratios[-1])
        first = ratios[(len(ratios) - 1) // 2] if first is None else first
        return Curve(kind, every, first, lambda ratio: spectral_method(loaded, profile_at(kind, ratio), kind, ratio))

    def rivals(*modes: str | None) -> list[Curve]:
        return [
            Curve(rival.method, rival.budgets, rival.first, lambda budget, rival=rival: built(rival, budget, context))
            for rival in study.rivals
            if parse(rival.label(rival.first))[0].mode in modes
        ]

    streamed = [*map(spectral, kinds), *rivals(None, STREAMING)]
    walk(streamed, study.kl, lambda methods: _rows(loaded, windows, methods, name, progress))
    own = streamed[list(kinds).index(OWN)]
    once = rivals(PROMPT)
    if once:
        once.insert(0, spectral(OWN, own.nearest(study.kl)))
        walk(once, study.kl, lambda methods: _rows(loaded, windows, methods, name, progress, PROMPT))
    curves = [*streamed, *once]
    points = [curve.rows[budget] for curve in curves for budget in sorted(curve.rows)]
    return {
        "text": name,
        "rows": [row.as_json() for row in at_equal_kl(points, study.kl, shared_by_ratio(curves))],
        "points": [row.as_json() for row in points],
        "at_kl": at_kl(streamed, study.kl),
        "evaluation_sha256": tokens_sha256(windows),
        "code": used_code(),
    }


class SharedPca(MethodContext):
    """A context that solves the bases of a group of layers once for all of KVTC's budgets."""

    def pca(self, layers: tuple[int, ...]) -> tuple[Pca, Pca]:
        solved: dict[tuple[int, ...], tuple[Pca, Pca]] = self.__dict__.setdefault("solved", {})
        if layers not in solved:
            solved[layers] = super().pca(layers)
        return solved[layers]


def spectral_method(
    loaded: LoadedModel, profile: CalibrationProfile, kind: str, ratio: float
) -> tuple[Any, int | None]:
    """The cold tier of a profile as a method, and the profile's bytes."""
    method = tier_method(profile.tier("cold"), loaded, variant=kind, target_ratio=ratio)
    return method, profile.sidecar.tensor_bytes


def built(rival: Budgets, budget: float, context: MethodContext) -> tuple[Any, int | None]:
    """A rival at a budget, and what it shares between requests."""
    method = parse(rival.label(budget))[0].build(context)
    return method, shared_bytes(method)


def shared_bytes(method: Any) -> int | None:
    """Bytes of what KVTC shares between requests: in fp16, the means of keys and values and the components that its code keeps.
    None for other methods.
    """
    if method.name != "kvtc":
        return None
    parts = method.parts.values() if isinstance(method, GroupedMethod) else [method]
    kept = [(sum(g.stop - g.start for g in part.groups), len(part.bases[0].mean)) for part in parts]
    return sum(2 * (live + 2) * width for live, width in kept)


def shared_by_ratio(curves: Sequence[Curve]) -> dict[str, dict[float, int]]:
    """By method or kind of profile and payload ratio, the bytes that requests share."""
    out: dict[str, dict[float, int]] = {}
    for curve in curves:
        sizes = {row.payload_ratio: curve.shared_bytes[budget] for budget, row in curve.rows.items()}
        out.setdefault(curve.name.partition(":")[0], {}).update({r: n for r, n in sizes.items() if n is not None})
    return out


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
