"""What steps, metric, form of the bases, shrinkage and the profile's size are worth in KL at equal bytes, on a real model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from research.windows import ALL as EVERY
from research.windows import CALIBRATION, scored_windows
from spectralquant.calibration.basis.two_level import TwoLevelForm
from spectralquant.calibration.capture.samples import sample_bytes, sample_indices
from spectralquant.calibration.cold.budget import keep_within, tier_bytes
from spectralquant.calibration.cold.fit import ColdFitter
from spectralquant.calibration.first_pass import FirstPass
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.calibration.split import SplitColdFitter, parts_of
from spectralquant.calibration.sums import CalibrationSums
from spectralquant.evaluation.measure import measure
from spectralquant.methods.coding.spectral import tier_method
from spectralquant.models.load import LoadedModel
from spectralquant.processes import Processes
from spectralquant.provenance import device_facts
from spectralquant.surroundings import own_run
from spectralquant.text.tokens import TokenText

Progress = Callable[[str, int, int], None]
Row = dict[str, Any]
Fitter = ColdFitter | SplitColdFitter
CURVE = 1.3  # points of the curve are at least this far apart
CURVE_CASES = ("steps", "shrinkage")
KEYS = ("varied", "variant", "model", "metric", "basis", "steps", "window")
FORMS = {"no energy dropped": TwoLevelForm(dropped=1e-7), "outer rows of 16 bits": TwoLevelForm(fine=1 << 20)}


@dataclass(frozen=True)
class QualityStudy:
    """steps: of the curve, as far as the text reaches. usual: steps of all that is not the curve (or the most, where those
    are fewer). windows: scored, of `scored` tokens each. middle: payload ratio whose step is searched, factors: of that
    step, one point of a case each. budgets: bytes of profiles.
    """

    steps: tuple[int, ...] = (50, 100, 300, 1000)
    usual: int = 100
    window: int = 2048
    windows: int = 6
    scored: int = 1024
    middle: float = 35
    factors: tuple[float, ...] = (0.25, 0.5, 1, 2)
    metrics: tuple[str, ...] = ("attention", "energy")
    shrinkage: tuple[float, ...] = (0.15, 0.4)
    budgets: tuple[int, ...] = (40_000_000, 20_000_000)
    forms: tuple[str, ...] = tuple(FORMS)


@dataclass(frozen=True)
class Case:
    """One fitted calibration: what is varied, and by what."""

    varied: str
    variant: str
    settings: CalibrationSettings

    def key(self, model: str) -> tuple[Any, ...]:
        """What tells its rows from others."""
        s = self.settings
        return self.varied, self.variant, model, s.metric, s.basis, s.steps, s.window

    @property
    def form(self) -> TwoLevelForm:
        return FORMS.get(self.variant, TwoLevelForm())

    @property
    def solves(self) -> tuple[Any, ...]:
        """What its bases depend on."""
        return self.settings, self.form


class QualityRun:
    """The cases of one model, one calibration after the other, but for those `done`."""

    def __init__(
        self,
        loaded: LoadedModel,
        text: TokenText,
        study: QualityStudy,
        progress: Progress,
        done: Sequence[Row] = (),
        *,
        curve: bool,
    ) -> None:
        """curve: the cases of the curve over steps and of shrinkage, or else all others."""
        self.curve = curve
        self.loaded, self.text, self.study, self.progress = loaded, text, study, progress
        self.known = {tuple(row.get(name) for name in KEYS) for row in done}
        fits = len(text.windows(study.window)) * CALIBRATION // EVERY
        self.steps: list[int] = []
        for steps in sorted(min(n, fits) for n in study.steps):
            if not self.steps or steps >= CURVE * self.steps[-1]:
                self.steps.append(steps)
        self.usual = max((n for n in self.steps if n <= study.usual), default=self.steps[0])
        self.scored = scored_windows(text, self.steps[-1], study.window, study.windows, scored=study.scored)
        self.base = CalibrationSettings(steps=self.steps[-1], window=study.window, held_out_windows=1)

    def rows(self) -> Iterator[list[Row]]:
        """Rows of one case after the other."""
        with own_run(self.loaded.model):
            for metric in () if self.curve else self.study.metrics:
                settings = replace(self.base, metric=metric, basis="dense", steps=self.usual)
                case = Case("metric", "", settings)
                if case.key(self.loaded.name) in self.known:
                    continue
                run = self._run(settings)
                yield self._case(self._fitter(run, *run.first_pass(), case), case)
            yield from self._fisher()

    def _fisher(self) -> Iterator[list[Row]]:
        """One pass over all steps; what is known after some of them is fitted on the way, shrinkage when the curve is there."""
        cases = {steps: self._cases(steps) for steps in self.steps}
        last = max((steps for steps, some in cases.items() if some), default=0)
        if not last:
            return
        run = self._run(self.base)
        sums = CalibrationSums(run.loaded.model, run.geometry, run.span, run.features, self.base)
        alone = Processes()
        work = FirstPass(run.loaded, run.windows, self.base, sums, run.far, run._offset, None, alone, self.progress)
        wanted = {steps: self._sampled(steps) for steps in self.steps if steps <= last}
        samples: dict[int, Any] = {}
        at = 0
        later: list[tuple[list[Case], list[Any], dict[str, Any]]] = []
        for steps, indices in wanted.items():
            at = work.share(at, steps, sorted({i for some in wanted.values() for i in some}), samples)
            own = [samples[i] for i in indices]
            yield from self._fitted(run, sums, own, [case for case in cases[steps] if case.varied != "shrinkage"])
            if others := [case for case in cases[steps] if case.varied == "shrinkage"]:
                later.append((others, own, {name: tensor.clone() for name, tensor in sums.state().items()}))
        for others, own, state in later:
            sums.load_state(state)
            yield from self._fitted(run, sums, own, others)

    def _fitted(
        self, run: CalibrationRun, sums: CalibrationSums, samples: list[Any], cases: Sequence[Case]
    ) -> Iterator[list[Row]]:
        """Rows of cases that the same sums and samples make."""
        sums.finish()
        solved: tuple[Any, Fitter] | None = None
        for number, case in enumerate(cases):
            self.progress(f"{case.varied} {case.variant} {case.settings.steps}", number, len(cases))
            if solved is None or solved[0] != case.solves:
                solved = None  # one at a time on the device
                solved = case.solves, self._fitter(run, sums, samples, case)
            yield self._case(solved[1], case)

    def _sampled(self, steps: int) -> list[int]:
        size = sample_bytes(self.loaded.geometry, self.study.window, self.loaded.model.dtype.itemsize, backward=True)
        return sample_indices(steps, size, self.base.sample_bytes, self.base.sample_windows)

    def _cases(self, steps: int) -> list[Case]:
        """What is not done yet after so many steps."""
        settings = replace(self.base, steps=steps, basis="dense")
        two = replace(settings, basis="two-level")
        out = [Case("steps", "", settings)]
        sizes = [f"{size / 1e6:g} MB" for size in sorted(self.study.budgets, reverse=True)]  # ranks only ever fall
        if steps == self.usual:
            out += [Case("size", size, settings) for size in sizes]
            out += [Case("bases", "", two), *(Case("size", size, two) for size in sizes)]
            out += [Case("form", name, two) for name in self.study.forms]
        few = self.study.shrinkage if steps == self.usual else self.study.shrinkage[:1]  # it is for few steps
        out += [Case("shrinkage", f"{s:g}", replace(settings, shrinkage=s)) for s in few if steps <= self.usual]
        wanted = [case for case in out if (case.varied in CURVE_CASES) == self.curve]
        return [case for case in wanted if case.key(self.loaded.name) not in self.known]

    def _run(self, settings: CalibrationSettings) -> CalibrationRun:
        return CalibrationRun(self.loaded, self.text, settings, "text", None, False, self.text, self.progress)

    def _fitter(self, run: CalibrationRun, sums: CalibrationSums, samples: list[Any], case: Case) -> Fitter:
        run.settings, run.form = case.settings, case.form
        return run.cold_fitter(sums, samples)

    def _case(self, fitter: Fitter, case: Case) -> list[Row]:
        step = fitter.step_for_ratio(self.study.middle)
        if case.varied == "size":
            _cut(fitter, int(float(case.variant.split()[0]) * 1e6), step, self.study.middle)
            step = fitter.step_for_ratio(self.study.middle)
        tiers = [fitter.fit(step * factor)[0] for factor in self.study.factors]
        return [_row(self.loaded, case, *pair) for pair in zip(tiers, self._measured(tiers), strict=True)]

    def _measured(self, tiers: Sequence[Any]) -> list[Any]:
        methods = [tier_method(tier, self.loaded) for tier in tiers]
        found = measure(self.loaded.model, self.loaded.geometry, self.scored, methods)
        return [m.row(self.loaded.geometry, self.loaded.name, self.scored.shape[1]) for m in found]


def _cut(fitter: Fitter, size: int, step: float, ratio: float) -> None:
    """Keep as many components as fit a profile of `size` bytes."""
    parts = fitter.fitters if isinstance(fitter, SplitColdFitter) else [fitter]
    if any(part.two_level for part in parts):
        keep_within(fitter, size, ratio)
        return
    tier, _ = fitter.fit(step, stride=8)
    rank = sum(len(part.key_centroid) + len(part.value_centroid) for part in parts_of(tier))
    if size < tier_bytes(tier):
        fitter.limit_rank(step, int(rank * size / tier_bytes(tier)))


def _row(loaded: LoadedModel, case: Case, tier: Any, measured: Any) -> Row:
    settings = case.settings
    return {
        **dict(zip(KEYS, case.key(loaded.name), strict=True)),
        "shrinkage": settings.shrinkage,
        "n_tokens": measured["n_tokens"],
        "payload_ratio": measured["payload_ratio"],
        "kl_nats": measured["kl_nats"],
        "delta_ppl": measured["delta_ppl"],
        "base_ppl": measured["base_ppl"],
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
