"""What the study measures, part by part; each part is a dictionary that goes into a file of its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from research.windows import scored_windows
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.calibration.solve import Trials, choose_centroids
from spectralquant.calibration.targets import parse_target
from spectralquant.codec.cold.complement.bounded_block import way_of
from spectralquant.evaluation.curve import ratio_at_kl
from spectralquant.evaluation.measure import Measurement, measure
from spectralquant.evaluation.tiers import measure_tiers
from spectralquant.methods.coding.spectral import BoundedSpec, tier_method
from spectralquant.methods.coding.turboquant import TurboQuant
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.promises import error_limit
from spectralquant.results.quality import MethodRow
from spectralquant.text.tokens import TokenText, tokens_sha256

Progress = Callable[[str, int, int], None]
HOME_KL = 0.01
SLACK = 1.5


@dataclass(frozen=True)
class QualityStudy:
    """steps windows of `window` tokens calibrate an own profile, `general_steps` the general one; the last `windows` of the
    home text's report part, and `per_text` of every other text, are scored. bound: KL that the general profile promises.
    """

    steps: int = 80
    general_steps: int = 100
    window: int = 2048
    windows: int = 24
    per_text: int = 2
    bound: float = 0.0125
    ratios: tuple[float, ...] = (45, 70, 95)
    turbo_bits: tuple[int, ...] = (2, 3, 4)
    cost_windows: int = 4
    text_tokens: int = 60_000
    held_out: int = 8
    part: str = "report"


def home(loaded: LoadedModel, text: TokenText, name: str, study: QualityStudy, progress: Progress) -> dict[str, Any]:
    """A profile of its own text: the rate–distortion curve, and what a bound costs where every block keeps it."""
    windows = scored_windows(text, study.steps, study.window, study.windows, study.part)
    settings = CalibrationSettings(
        steps=study.steps, window=study.window, held_out_windows=1, held_out_window=study.window
    )
    run = CalibrationRun(loaded, text, settings, name, None, False, None, progress)
    sums, samples = run.first_pass()
    fitter = run.cold_fitter(sums, samples)
    methods, tiers = [], {}
    for ratio in study.ratios:
        tier, report = fitter.fit(fitter.step_for_ratio(ratio))
        tiers[ratio] = (choose_centroids(tier, Trials(loaded, run.held_out, measure_tiers, lambda *_: None))[0], report)
        methods.append(tier_method(tiers[ratio][0], loaded, target_ratio=ratio))
    rows = _rows(loaded, windows, methods, name, progress)
    tier, report = tiers[study.ratios[len(study.ratios) // 2]]
    summaries = {"cold": run.cold_summary(study.ratios[0], report)}
    heads = run.assemble(sums, {"cold": tier}, summaries).heads
    return {
        "model": loaded.name,
        "text": name,
        "ratio_at_kl": ratio_at_kl(rows, HOME_KL),
        "rows": [row.as_json() for row in rows],
        "evaluation_sha256": tokens_sha256(windows),
        "bound_at_home": _bound_cost(loaded, tier, heads, report.step, windows[: study.cost_windows], progress),
    }


def _bound_cost(loaded: LoadedModel, tier: Any, heads: Any, step: float, windows: Tensor, progress: Progress) -> dict:
    """Bytes with a bound a little over the errors of blocks as calibrated, against those without one."""
    free = tier_method(tier, loaded, bounded=BoundedSpec(heads, step, math.inf))
    plain = measure(loaded.model, loaded.geometry, windows, [free], lambda d, t: progress("cost of a bound", d, t))[0]
    parts = free.parts.values() if hasattr(free, "parts") else [free]
    error = SLACK * sum(sum(p.codec.errors) / len(p.codec.errors) for p in parts)
    kept = tier_method(tier, loaded, bounded=BoundedSpec(heads, step, error))
    ways: Counter[str] = Counter()
    bounded = _watched(loaded, windows, kept, ways, progress)
    return {
        "slack": SLACK,
        "bytes": plain.total("coded_bytes"),
        "bytes_bounded": bounded.total("coded_bytes"),
        "cost_share": bounded.total("coded_bytes") / plain.total("coded_bytes") - 1,
        "kl": plain.kl,
        "kl_bounded": bounded.kl,
        "ways": dict(ways),
        "encode_share": bounded.total("encode_s") / plain.total("encode_s"),
    }


def general(loaded: LoadedModel, mix: TokenText, name: str, study: QualityStudy, out: Path, progress: Progress) -> dict:
    """One profile of mixed text, solved for the bound; it is kept beside the study's parts."""
    settings = CalibrationSettings(
        steps=study.general_steps,
        window=study.window,
        held_out_windows=study.held_out,
        held_out_window=1024,
        targets={"cold": parse_target(f"error={study.bound}")},
    )
    profile = calibrate_model(loaded, mix, settings, text_name=name, out=out, progress=progress)
    summary = profile.sidecar.tiers["cold"]
    return {
        "model": loaded.name,
        "sources": [s.model_dump() for s in profile.sidecar.text.sources],
        "steps": study.general_steps,
        "errors": [p.model_dump() for p in summary.errors],
        "error_limit": error_limit(summary, study.bound),
        "step": summary.step,
        "measured": summary.measured,
        "profile_bytes": profile.sidecar.tensor_bytes,
    }


def foreign(
    loaded: LoadedModel,
    profile: CalibrationProfile,
    name: str,
    text: TokenText,
    kind: str,
    study: QualityStudy,
    progress: Progress,
) -> dict[str, Any]:
    """One text under the general profile: bounded, as calibrated, and TurboQuant on the same tokens."""
    windows = scored_windows(text, 0, study.window, study.per_text, study.part)
    summary = profile.sidecar.tiers["cold"]
    spec = BoundedSpec(profile.heads, summary.step, error_limit(summary, study.bound))
    bounded = tier_method(profile.tier("cold"), loaded, bounded=spec, bound=study.bound)
    ways: Counter[str] = Counter()
    kept = _watched(loaded, windows, bounded, ways, progress)
    others = [tier_method(profile.tier("cold"), loaded)] + [
        TurboQuant(loaded.geometry.head_dim, b) for b in study.turbo_bits
    ]
    found = [kept, *measure(loaded.model, loaded.geometry, windows, others, lambda d, t: progress(name, d, t))]
    rows = [m.row(loaded.geometry, loaded.name, study.window).updated(text=name) for m in found]
    turbo = [r for r in rows if r.method == "turboquant"]
    return {
        "text": name,
        "kind": kind,
        "kl": kept.kl,
        "payload_ratio": rows[0].payload_ratio,
        "exceeded": kept.kl / study.bound - 1,
        "turboquant_at_equal_kl": turbo_ratio(turbo, kept.kl),
        "ways": dict(ways),
        "evaluation_sha256": tokens_sha256(windows),
        "rows": [row.as_json() for row in rows],
    }


def turbo_ratio(rows: list[MethodRow], kl: float) -> float:
    """TurboQuant's payload ratio at a KL; beyond its curve, its end on that side."""
    ordered = sorted(rows, key=lambda r: r.kl_nats)
    if kl <= ordered[0].kl_nats:
        return ordered[0].payload_ratio
    if kl >= ordered[-1].kl_nats:
        return ordered[-1].payload_ratio
    return ratio_at_kl(rows, kl)


def _watched(loaded: LoadedModel, windows: Tensor, method: Any, ways: Counter[str], progress: Progress) -> Measurement:
    """`measure` of one method that counts the ways its blocks took."""
    parts = list(method.parts.values()) if hasattr(method, "parts") else [method]
    for part in parts:
        part.encode = _counting(part.encode, ways)
    with torch.no_grad():
        return measure(loaded.model, loaded.geometry, windows, [method], lambda d, t: progress("bounded", d, t))[0]


def _counting(encode: Callable[[Any], Any], ways: Counter[str]) -> Callable[[Any], Any]:
    def counted(block: Any) -> Any:
        coded = encode(block)
        ways[way_of(coded.data)] += 1
        return coded

    return counted


def _rows(loaded: LoadedModel, windows: Tensor, methods: list[Any], name: str, progress: Progress) -> list[MethodRow]:
    found = measure(loaded.model, loaded.geometry, windows, methods, lambda d, t: progress("scoring", d, t))
    return [m.row(loaded.geometry, loaded.name, windows.shape[1]).updated(text=name) for m in found]
