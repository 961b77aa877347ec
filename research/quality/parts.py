"""What the study measures, part by part; each part is a dictionary that goes into a file of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from research.quality.kept_windows import measured
from research.quality.texts import MORE
from research.windows import ALL, CALIBRATION, HELD_OUT, require_unseen, scored_windows
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.calibration.solve import Trials, choose_centroids
from spectralquant.calibration.targets import parse_target
from spectralquant.codec.cold.complement.bounded_block import way_of
from spectralquant.evaluation.curve import ratio_at_kl
from spectralquant.evaluation.measure import Measurement, measure
from spectralquant.evaluation.tiers import measure_tiers
from spectralquant.methods.coding.spectral import BoundedSpec, cold_parts, mean_error, tier_method
from spectralquant.methods.coding.turboquant import TurboQuant
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.promises import FREE, MEASURE, ErrorLimits, error_limits
from spectralquant.profile.schema import ErrorPoint
from spectralquant.results.quality import MethodRow
from spectralquant.text.mix import MixedText
from spectralquant.text.tokens import TokenText, tokens_sha256

Progress = Callable[[str, int, int], None]
HOME_KLS = (0.01, 0.004)
SLACK = 1.5
SAMPLE_BYTES = 1 << 36
HELD_OUT_WINDOW = 1024


@dataclass(frozen=True)
class QualityStudy:
    """`steps` windows of `window` tokens (or all that may calibrate, see `research.windows`), and those that begin half a
    window later, calibrate an own profile, `general_steps` the general one; the last `windows` of the home text's report
    part, `per_text` of every other text, and one of texts that are for the bound alone, are scored. bound: KL that the
    general profile promises.
    """

    steps: int = 80
    general_steps: int = 200
    window: int = 2048
    windows: int = 24
    per_text: int = 2
    bound: float = 0.0125
    ratios: tuple[float, ...] = (26, 40, 60, 80, 100)
    turbo_bits: tuple[int, ...] = (2, 3, 4)
    cost_windows: int = 4
    text_tokens: int = 60_000
    held_out: int = 8
    sample_windows: int = 48
    part: str = "report"


def home(
    loaded: LoadedModel, text: TokenText, name: str, study: QualityStudy, unfinished: Path, progress: Progress
) -> dict[str, Any]:
    """A profile of its own text: the rate–distortion curve, and what a bound costs where every block keeps it.

    unfinished: where what is finished of it is kept.
    """
    count = min(study.steps, len(text.windows(study.window)) * CALIBRATION // ALL)
    windows = scored_windows(text, count, study.window, study.windows, study.part)
    own = shifted_twice(text, count, study.window)
    settings = CalibrationSettings(
        steps=2 * count - 1,
        window=study.window,
        held_out_windows=1,
        held_out_window=study.window,
        sample_windows=study.sample_windows,
        sample_bytes=SAMPLE_BYTES,
    )
    run = CalibrationRun(loaded, own, settings, name, *_going_on(unfinished), None, progress)
    sums, samples = run.first_pass()
    fitter = run.cold_fitter(sums, samples)
    methods, tiers = [], {}
    counted = {"sliding_layers": "as held"} if any(loaded.geometry.windows) else {}
    for ratio in study.ratios:
        tier, report = fitter.fit(fitter.step_for_ratio(ratio))
        tiers[ratio] = (choose_centroids(tier, Trials(loaded, run.held_out, measure_tiers, lambda *_: None))[0], report)
        methods.append(tier_method(tiers[ratio][0], loaded, target_ratio=ratio, **counted))
    found = measured(unfinished, loaded, windows, methods, lambda d, t: progress("scoring", d, t))
    rows = [m.row(loaded.geometry, loaded.name, study.window).updated(text=name) for m in found]
    tier, report = tiers[study.ratios[len(study.ratios) // 2]]
    summaries = {"cold": run.cold_summary(study.ratios[0], report)}
    heads = run.assemble(sums, {"cold": tier}, summaries).heads
    return {
        "model": loaded.name,
        "text": name,
        "ratio_at_kl": {f"{kl:g}": ratio_at_kl(rows, kl) for kl in HOME_KLS},
        "calibration_windows": count,
        "rows": [row.as_json() for row in rows],
        "evaluation_sha256": tokens_sha256(windows),
        "bound_at_home": _bound_cost(loaded, tier, heads, report.step, windows[: study.cost_windows], progress),
    }


def shifted_twice(text: TokenText, count: int, window: int) -> TokenText:
    """`count` windows, then those between their middles, then the two windows after the first: keys and values of a token
    differ by what stands before it, so the same text says a little more the second time.
    """
    body = text.body(window)
    first, middle, held_out = count * body, body // 2, HELD_OUT * body
    between = text.ids[middle : middle + (count - 1) * body]
    return TokenText(torch.cat([text.ids[:first], between, text.ids[first : first + held_out]]), text.bos)


def _bound_cost(loaded: LoadedModel, tier: Any, heads: Any, step: float, windows: Tensor, progress: Progress) -> dict:
    """Bytes with a bound a little over the errors of blocks as calibrated, against those without one."""
    free = tier_method(tier, loaded, bounded=BoundedSpec(heads, step, FREE))
    plain = measure(loaded.model, loaded.geometry, windows, [free], lambda d, t: progress("cost of a bound", d, t))[0]
    error = SLACK * mean_error(free)
    kept = tier_method(tier, loaded, bounded=BoundedSpec(heads, step, ErrorLimits(error, error)))
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


def _going_on(unfinished: Path) -> tuple[Path, bool]:
    """Where a calibration keeps its checkpoint, and whether there is one to go on from."""
    stem = unfinished / "calibration"
    return stem, stem.with_name(stem.name + ".partial").is_dir()


def general(
    loaded: LoadedModel,
    mix: TokenText,
    name: str,
    study: QualityStudy,
    out: Path,
    unfinished: Path,
    progress: Progress,
) -> dict:
    """One profile of mixed text, solved for the bound; it is kept beside the study's parts."""
    settings = CalibrationSettings(
        steps=study.general_steps,
        window=study.window,
        held_out_windows=study.held_out,
        held_out_window=HELD_OUT_WINDOW,
        sample_windows=study.sample_windows,
        sample_bytes=SAMPLE_BYTES,
        targets={"cold": parse_target(f"error={study.bound}")},
    )
    stem, resume = _going_on(unfinished)
    profile = calibrate_model(loaded, mix, settings, text_name=name, out=stem, resume=resume, progress=progress)
    profile.save(out)
    summary = profile.sidecar.tiers["cold"]
    return {
        "model": loaded.name,
        "text": profile.sidecar.text.source,
        "sources": [s.model_dump() for s in profile.sidecar.text.sources],
        "steps": study.general_steps,
        "errors": [p.model_dump() for p in summary.errors],
        "error_limits": asdict(error_limits(summary, study.bound)),
        "step": summary.step,
        "measured": summary.measured,
        "profile_bytes": profile.sidecar.tensor_bytes,
    }


def promised(
    loaded: LoadedModel, profile: CalibrationProfile, points: list[ErrorPoint], study: QualityStudy, out: Path
) -> dict[str, Any]:
    """A profile that is there already, with what errors cost as measured here; kept beside the parts."""
    summary = profile.sidecar.tiers["cold"]
    summary.errors, summary.error_measure, summary.target = points, MEASURE, f"error={study.bound}"
    profile.save(out)
    return {
        "model": loaded.name,
        "text": profile.sidecar.text.source,
        "sources": [s.model_dump() for s in profile.sidecar.text.sources],
        "steps": profile.sidecar.calibration.steps,
        "errors": [p.model_dump() for p in points],
        "error_limits": asdict(error_limits(summary, study.bound)),
        "step": summary.step,
        "profile_bytes": profile.sidecar.tensor_bytes,
    }


def foreign(
    loaded: LoadedModel,
    profile: CalibrationProfile,
    name: str,
    text: MixedText,
    kind: str,
    study: QualityStudy,
    progress: Progress,
) -> dict[str, Any]:
    """One text under the general profile: bounded, as calibrated, and TurboQuant on the same tokens."""
    count = 1 if kind == MORE else study.per_text
    require_unseen(text, profile.sidecar.text.sources, count, study.window)
    windows = scored_windows(text, 0, study.window, count, study.part)
    summary = profile.sidecar.tiers["cold"]
    spec = BoundedSpec(profile.heads, summary.step, error_limits(summary, study.bound))
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
        "as_calibrated": {"kl": found[1].kl, "payload_ratio": rows[1].payload_ratio},
        "exceeded": kept.kl / study.bound - 1,
        "turboquant_at_equal_kl": turbo_ratio(turbo, kept.kl),
        "ways": dict(ways),
        "errors": _errors(bounded),
        "evaluation_sha256": tokens_sha256(windows),
        "rows": [row.as_json() for row in rows],
    }


def _errors(method: Any) -> dict[str, float | None]:
    """Mean errors of a bounded method's blocks, over all layers: see `BlockError`."""
    parts = [list(p.codec.errors) for p in cold_parts(method)]
    mean = lambda some: sum(some) / len(some) if some else None  # noqa: E731
    each = {"first": [], "outside": [], "left": []}
    for errors in parts:
        each["first"].append(mean([e.first for e in errors]))
        each["outside"].append(mean([e.outside for e in errors]))
        each["left"].append(mean([e.left for e in errors if e.left is not None]))
    return {name: sum(v for v in values if v is not None) for name, values in each.items()}


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
    for part in cold_parts(method):
        part.encode = _counting(part.encode, ways)
    with torch.no_grad():
        return measure(loaded.model, loaded.geometry, windows, [method], lambda d, t: progress("bounded", d, t))[0]


def _counting(encode: Callable[[Any], Any], ways: Counter[str]) -> Callable[[Any], Any]:
    def counted(block: Any) -> Any:
        coded = encode(block)
        ways[way_of(coded.data)] += 1
        return coded

    return counted
