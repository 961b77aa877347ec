"""The calibration run: capture → sums → bases → tables → held-out measurement → profile."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectralquant.calibration.basis.heads import head_spectra
from spectralquant.calibration.basis.spectrum import FrequencyAnalyzer
from spectralquant.calibration.basis.two_level import TwoLevelForm
from spectralquant.calibration.capture.samples import SampleWindow
from spectralquant.calibration.checkpoint import Checkpoint
from spectralquant.calibration.cold.budget import default_budget, fit_to_budget, keep_within
from spectralquant.calibration.cold.fit import ColdFitter, ColdReport
from spectralquant.calibration.first_pass import FirstPass, window_offset
from spectralquant.calibration.fixed.even import Even
from spectralquant.calibration.fixed.fit import FixedFitter
from spectralquant.calibration.fixed.layerwise import LayerwiseFixedFitter
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.quality import MeasureTiers
from spectralquant.calibration.solve import Trials, solve_cold, solve_fixed
from spectralquant.calibration.split import SplitColdFitter, SplitFixedFitter
from spectralquant.calibration.sums import CalibrationSums
from spectralquant.codec.cold.features import TokenFeatures, embedding_projection
from spectralquant.errors import InputError, SourceError
from spectralquant.files import user_path
from spectralquant.geometry import BLOCK, SINKS
from spectralquant.hooks.decoder import layer_devices
from spectralquant.hooks.rotary_frequencies import model_frequencies
from spectralquant.models.identity import model_identity
from spectralquant.models.limits import require_known_ids, require_positions
from spectralquant.models.load import LoadedModel
from spectralquant.models.weights import embedding_weight
from spectralquant.processes import Processes
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.schema import (
    SCHEMA_VERSION,
    CalibrationOptions,
    ProfileSidecar,
    TextIdentity,
    TextShare,
    TierSummary,
)
from spectralquant.profile.serving import serving_info
from spectralquant.profile.tensors import layer_columns
from spectralquant.provenance import device_facts, peak_memory_bytes, provenance
from spectralquant.text.overlap import block_hashes
from spectralquant.text.tokens import TokenText, tokens_sha256

Progress = Callable[[str, int, int], None]
FILE_OVERHEAD = 20_000


Finish = Callable[[CalibrationProfile, "CalibrationRun"], None]


class CalibrationRun:
    """One run, stage by stage: `first_pass` (resumable), `cold_fitter`, `execute` (all of it)."""

    def __init__(
        self,
        loaded: LoadedModel,
        text: TokenText,
        settings: CalibrationSettings,
        text_name: str,
        out: str | Path | None,
        resume: bool,
        held_out: TokenText | None,
        progress: Progress,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes()
        for name, length in (("--window", settings.window), ("--held-out-window", settings.held_out_window)):
            require_positions(loaded.model, length, f"{name} {length}", "Use a shorter window.")
        self.loaded, self.settings, self.text_name, self.progress = loaded, settings, text_name, progress
        self.geometry = loaded.geometry
        self.rotary = model_frequencies(loaded.model, loaded.geometry) if settings.serving else None
        self.device = loaded.device
        torch.manual_seed(settings.seed)
        body = settings.window - (text.bos is not None)
        self.windows = text.windows(settings.window, settings.steps)
        self.shares = text.shares(settings.steps * body)
        self.held_out = _held_out_windows(
            text if held_out is None else held_out, settings, settings.steps * body if held_out is None else 0
        )
        for windows in (self.windows, self.held_out):
            require_known_ids(loaded.model, windows)
        coded = self.geometry.coded_groups(2 * BLOCK)
        self.split = [group.layers for group in coded] if len(self.geometry.groups) > 1 else []
        self.far = any(group.reads_beyond(2 * BLOCK) for group in coded)
        self.spans = [settings.span_width(self.geometry.part(group.layers)) for group in coded]
        self.span = max(self.spans)
        self.identity = model_identity(loaded.name, loaded.model, self.geometry)
        self.features = None
        if settings.predict == "tokens" and "cold" in settings.tiers:
            embedding = embedding_weight(loaded.model)
            self.features = TokenFeatures(embedding, embedding_projection(embedding))
        self.stem = None if out is None else user_path(out)
        self.checkpoint = None if self.stem is None else Checkpoint(self.stem, self._fingerprint())
        if resume and self.checkpoint is None:
            raise InputError("Resuming needs the profile's path (--out).")
        self.resume = resume
        self.form = TwoLevelForm()
        self.times: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.peaks_by_device: dict[str, list[int]] = {}
        self.capture_times: dict[str, float] = {}

    def _fingerprint(self) -> dict[str, Any]:
        s = self.settings
        return {
            "model": self.identity.weights_sha256_bfloat16,
            "text": tokens_sha256(self.windows),
            "steps": s.steps,
            "window": s.window,
            "metric": s.metric,
            "span": self.span,
            "windows": list(self.geometry.windows),
            "predict": s.predict,
            "block": s.block,
            "tiers": sorted(s.tiers),
            "seed": s.seed,
            "dtype": str(self.loaded.model.dtype),
            "for": s.purpose,
        }

    def execute(self, measure: MeasureTiers, finish: Finish = lambda *_: None) -> CalibrationProfile | None:
        """All stages; an error says what stays on the disk. None in all processes but the first.

        measure: gives quality on held-out text. finish: is given the profile, with this run, before it is sealed.
        """
        with contextlib.nullcontext() if self.checkpoint is None else self.checkpoint.kept():
            with self.stage("capture"):
                sums, samples = self.first_pass()
            trials = Trials(self.loaded, self.held_out, measure, self.progress)
            return self._solve(sums, samples, trials, finish) if self.processes.first else None

    def _solve(
        self, sums: CalibrationSums, samples: list[SampleWindow], trials: Trials, finish: Finish
    ) -> CalibrationProfile:
        cold = None
        tiers: dict[str, Any] = {}
        summaries: dict[str, Any] = {}
        if "cold" in self.settings.tiers:
            with self.stage("bases"):
                cold = self.cold_fitter(sums, samples)
            with self.stage("cold tier"):
                tiers["cold"], summaries["cold"] = solve_cold(cold, trials, self.settings.target("cold"))
            cold = None  # its coefficients are the largest thing on the device
        for name in ("warm", "hot"):
            if name in self.settings.tiers:
                with self.stage(f"{name} tier"):
                    tiers[name], summaries[name] = solve_fixed(
                        self.fixed_fitter(name, sums, samples), name, trials, self.settings.target(name)
                    )
        with self.stage("heads"):
            profile = self.assemble(sums, tiers, summaries)
            finish(profile, self)
        if self.stem is None:
            profile.seal()
        else:
            with self.stage("save"):
                profile.sidecar.run |= {
                    "stages_s": self.times,
                    "stages_peak_bytes": self.peaks,
                    "stages_peak_bytes_by_device": self.peaks_by_device,
                    "peak_memory_bytes": peak_memory_bytes(),
                }
                profile.save(self.stem)
                self.checkpoint.remove()
        return profile

    def assemble(
        self, sums: CalibrationSums, tiers: dict[str, Any], summaries: dict[str, TierSummary]
    ) -> CalibrationProfile:
        """A profile (not yet sealed) of solved tiers, with the per-head spectra at the cold tier's step."""
        step = summaries["cold"].step if "cold" in summaries else self._water_level(sums)
        use_metric = self.settings.metric != "energy"
        finer = [math.sqrt(self._held_share(layer)) for layer in range(self.geometry.layers)]
        heads = head_spectra(self.geometry, sums.moments, sums.entropy.mean, step, finer, use_metric=use_metric)
        return CalibrationProfile(self._sidecar(summaries), heads, tiers, rotary=self.rotary)

    @staticmethod
    def cold_summary(ratio: float, report: ColdReport) -> TierSummary:
        """What a fitted (not measured) cold tier predicts."""
        return TierSummary(
            target=f"ratio={ratio:g}",
            step=report.step,
            predicted_ratio=report.predicted_ratio,
            alive_key=report.alive_key,
            alive_value=report.alive_value,
            captured_energy_key=report.captured_energy[0],
            captured_energy_value=report.captured_energy[1],
        )

    def fixed_fitter(
        self, name: str, sums: CalibrationSums, samples: list[SampleWindow]
    ) -> FixedFitter | SplitFixedFitter:
        """Bases of the warm or hot tier, ready to be fitted at any number of bits."""
        hot, layer_width = name == "hot", self.geometry.layer_width
        moments = [sums.rotated, sums.moments[1]] if hot else sums.moments
        width = self.geometry.head_dim if hot else layer_width
        use_metric = self.settings.metric != "energy"
        even = Even(width, self.geometry.kv_heads) if hot and self.settings.hot_bits == "even" else None
        options = {"use_metric": use_metric, "rotated": hot, "even": even}
        if self.settings.serving:
            return LayerwiseFixedFitter(moments, (width, width), samples, layers=self.geometry.layers, **options)
        if not self.split:
            return FixedFitter(moments, (width, width), samples, **options)
        fitters = [
            FixedFitter(
                [m.part(layers, layer_width) for m in moments],
                (width, width),
                [sample.part(layers) for sample in samples],
                **options,
            )
            for layers in self.split
        ]
        return SplitFixedFitter(self.split, fitters)

    def cold_fitter(self, sums: CalibrationSums, samples: list[SampleWindow]) -> ColdFitter | SplitColdFitter:
        """Bases of the cold tier, ready to be fitted at any step; cut to the profile budget where one is set."""
        predict = self.features is not None
        ratio = 16 / (self.settings.target("cold").bits or 16 / 30)
        heads = (
            2
            * self.geometry.layers
            * self.geometry.kv_heads
            * (4 * self.geometry.head_dim**2 + 8 * self.geometry.head_dim)
        )
        if self.settings.profile_budget is None:
            fitter = self._fitter(sums, samples, self.span, predict)
            weights = sum(p.numel() * p.element_size() for p in self.loaded.model.parameters())
            keep_within(fitter, default_budget(weights, self.geometry.width) - heads - FILE_OVERHEAD, ratio)
            return fitter
        layers = math.gcd(*self.spans) // self.geometry.layer_width
        spans = [n * self.geometry.layer_width for n in range(layers, 0, -1) if layers % n == 0] or [self.span]
        budget = self.settings.profile_budget - heads - FILE_OVERHEAD
        make = lambda span, predict: self._fitter(sums, samples, span, predict)  # noqa: E731
        choice = fit_to_budget(make, spans, predict, budget, ratio)
        self.span = choice.span
        self.features = self.features if choice.predict else None
        return choice.fitter

    def _fitter(
        self, sums: CalibrationSums, samples: list[SampleWindow], span: int, predict: bool
    ) -> ColdFitter | SplitColdFitter:
        common = {
            "use_metric": self.settings.metric != "energy",
            "importance": "own" if self.settings.serving else "received",
            "features": self.features,
            "two_level": self.settings.two_levels(self.geometry),
            "form": self.form,
            "shrinkage": self.settings.shrinkage,
            "progress": lambda text: self.progress(text, 0, 1),
        }
        features, block, width = sums.features if predict else None, self.settings.block, self.geometry.layer_width
        if not self.split:
            return ColdFitter(
                self.geometry, sums.moments, samples, block, feature_moments=features, span=span, **common
            )
        fitters = []
        for layers in self.split:
            moments = [m.part(layers, width) for m in sums.moments]
            some = [sample.part(layers) for sample in samples]
            own = None if features is None else features.part(layer_columns(layers, width))
            spans = {"span": min(span, moments[0].span), "feature_moments": own}
            fitters.append(ColdFitter(self.geometry.part(layers), moments, some, block, **spans, **common))
        return SplitColdFitter(
            self.geometry, self.split, fitters, [self._held_share(layers[0]) for layers in self.split]
        )

    def _held_share(self, layer: int) -> float:
        """See `LayerGroup.held_share`."""
        if not self.split:
            return 1.0
        return next(group.held_share for group in self.geometry.groups if layer in group.layers)

    def first_pass(self) -> tuple[CalibrationSums, list[SampleWindow]]:
        """Sums over all steps, and the sample windows (in the first process)."""
        sums = CalibrationSums(self.loaded.model, self.geometry, self.span, self.features, self.settings)
        steps = FirstPass(
            self.loaded,
            self.windows,
            self.settings,
            sums,
            self.far,
            self._offset,
            self.checkpoint,
            self.processes,
            self.progress,
        )
        samples = steps.run(resume=self.resume)
        self.capture_times = steps.seconds
        if self.processes.first:
            sums.finish()
        return sums, samples

    def _offset(self, index: int) -> int:
        """Position of a window (see `window_offset`)."""
        return window_offset(self.loaded.model, self.settings, index)

    def _water_level(self, sums: CalibrationSums) -> float:
        """Without a cold tier: the step at which per-head Gaussian components would take two bits a scalar."""
        from spectralquant.calibration.basis.rank import RankAllocator

        level = head_spectra(
            self.geometry, sums.moments, sums.entropy.mean, 1.0, use_metric=self.settings.metric != "energy"
        )
        return RankAllocator([level.variance.flatten()]).step_for_bits(2.0, 2 * self.geometry.width)

    def _sidecar(self, summaries: dict[str, Any]) -> ProfileSidecar:
        s = self.settings
        return ProfileSidecar(
            schema_version=SCHEMA_VERSION,
            tensors_sha256="",
            tensor_bytes=0,
            model=self.identity,
            text=TextIdentity(
                source=self.text_name,
                sha256=tokens_sha256(self.windows),
                tokens=self.windows.numel(),
                window=s.window,
                sources=[TextShare(**asdict(share)) for share in self.shares],
                blocks=block_hashes(self.windows),
            ),
            calibration=CalibrationOptions(
                steps=s.steps,
                metric=s.metric,
                span=s.span,
                span_width=self.span,
                solver=self._solver(),
                shrinkage=s.shrinkage,
                block=s.block,
                sinks=SINKS,
                predict=s.predict if self.features else "none",
                labels="text",
                seed=s.seed,
            ),
            tiers=summaries,
            serving=None if self.rotary is None else serving_info(self.rotary),
            run=provenance(
                **device_facts(self.device),
                dtype=str(self.loaded.model.dtype).removeprefix("torch."),
                held_out_sha256=tokens_sha256(self.held_out),
                stages_s=self.times,
                stages_peak_bytes=self.peaks,
                capture_s=self.capture_times,
                processes=self.processes.size,
                reduced_bytes=self.processes.bytes,
                reduce_s=round(self.processes.seconds, 3),
            ),
        )

    def _solver(self) -> str:
        """What solved the cold tier's eigenproblems."""
        precision = str(FrequencyAnalyzer.solver_dtype(self.span, self.device)).removeprefix("torch.")
        two = self.settings.two_levels(self.geometry) and self.span > self.geometry.layer_width
        return f"{'two-level' if two else 'dense'} {precision} eigh"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time and peak memory of what is done inside, under a name."""
        start = time.perf_counter()
        gpus = sorted({device for device in layer_devices(self.loaded.model) if device.type == "cuda"}, key=str)
        for device in gpus:
            torch.cuda.reset_peak_memory_stats(device)
        yield
        for device in gpus:
            torch.cuda.synchronize(device)
        each = [torch.cuda.max_memory_allocated(device) for device in gpus]
        if each:
            self.peaks[name] = max(each)
        if len(each) > 1:
            self.peaks_by_device[name] = each
        self.times[name] = round(time.perf_counter() - start, 3)


def _held_out_windows(text: TokenText, settings: CalibrationSettings, start: int) -> Tensor:
    """Two disjoint sets, one after the other: the first half solves for targets, the second is reported."""
    try:
        return text.windows(settings.held_out_window, 2 * settings.held_out_windows, start)
    except SourceError as error:
        body = settings.held_out_window
        fits = max(0, (len(text.ids) - 2 * settings.held_out_windows * body) // settings.window)
        raise SourceError(
            f"The text has {len(text.ids):,} tokens: too few for {settings.steps} steps of {settings.window} and "
            f"{2 * settings.held_out_windows} held-out windows of {body}. Give more text, or use --steps {fits} or fewer."
        ) from error
