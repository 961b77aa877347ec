"""What steps, metric and form of the bases are worth in KL at equal bytes, on a real model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from research.windows import scored_windows
from spectralquant.calibration.cold.budget import tier_bytes
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.evaluation.measure import measure
from spectralquant.methods.coding.spectral import tier_method
from spectralquant.models.load import LoadedModel
from spectralquant.provenance import device_facts
from spectralquant.surroundings import own_run
from spectralquant.text.tokens import TokenText

Progress = Callable[[str, int, int], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class QualityStudy:
    """steps: of the curve; the largest is used for bases and metrics. windows: scored, `scored` tokens
    each, of the text's report part. ratios: payload ratios that tiers are fitted for."""

    steps: tuple[int, ...] = (50, 100, 300)
    window: int = 2048
    windows: int = 8
    scored: int = 1024
    ratios: tuple[float, ...] = (20, 40, 80)
    metrics: tuple[str, ...] = ("fisher", "attention", "energy")
    bases: tuple[str, ...] = ("two-level", "dense")


def quality_rows(
    loaded: LoadedModel, text: TokenText, study: QualityStudy, progress: Progress, done: Sequence[Row] = ()
) -> Iterator[list[Row]]:
    """Rows of one calibration after the other: each form of bases, each metric, each number of steps, but for those `done`."""
    names = ("varied", "model", "metric", "basis", "steps", "window")
    known = {tuple(row.get(name) for name in names) for row in done}
    base = CalibrationSettings(steps=max(study.steps), window=study.window, held_out_windows=1)
    held_out = scored_windows(text, max(study.steps), study.window, study.windows, scored=study.scored)
    cases = [("bases", base, study.bases)]
    cases += [
        ("metric", replace(base, metric=metric), ("two-level",)) for metric in study.metrics if metric != "fisher"
    ]
    cases += [("steps", replace(base, steps=steps), ("two-level",)) for steps in study.steps if steps != base.steps]
    for what, settings, all_bases in cases:
        key = lambda basis: (what, loaded.name, settings.metric, basis, settings.steps, settings.window)  # noqa: B023, E731
        bases = [basis for basis in all_bases if key(basis) not in known]
        if not bases:
            continue
        with own_run(loaded.model):
            run = CalibrationRun(loaded, text, settings, "text", None, False, text, progress)
            sums, samples = run.first_pass()
            for basis in bases:
                run.settings = replace(settings, basis=basis)
                fitter = run.cold_fitter(sums, samples)
                yield [_row(loaded, run.settings, what, fitter, ratio, held_out) for ratio in study.ratios]


def _row(
    loaded: LoadedModel, settings: CalibrationSettings, what: str, fitter: Any, ratio: float, held_out: Tensor
) -> Row:
    tier, _ = fitter.fit(fitter.step_for_ratio(ratio))
    row = measure(loaded.model, loaded.geometry, held_out, [tier_method(tier, loaded)])[0].row(
        loaded.geometry, loaded.name, held_out.shape[1]
    )
    return {
        "varied": what,
        "model": loaded.name,
        "metric": settings.metric,
        "basis": settings.basis,
        "steps": settings.steps,
        "window": settings.window,
        "n_tokens": row["n_tokens"],
        "payload_ratio": row["payload_ratio"],
        "kl_nats": row["kl_nats"],
        "delta_ppl": row["delta_ppl"],
        "tier_bytes": tier_bytes(tier),
        "measured": True,
        **device_facts(loaded.device),
    }


def kl_at(rows: Sequence[Row], ratio: float) -> float | None:
    """KL at a payload ratio, between measured points (straight in logarithms); None outside them."""
    points = sorted((math.log(r["payload_ratio"]), math.log(r["kl_nats"])) for r in rows)
    x = math.log(ratio)
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= x <= x1:
            return math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
    return None
