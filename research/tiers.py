"""The three tiers on held-out text, and what a real cache object then holds (issue: drop-in caches).

Quality comes from the streaming harness; resident bytes and the KL beside them come from a `SpectralCache` of a half
precision model that is fed block by block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from research.windows import scored_windows
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.calibration.options import TIERS, CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.calibration.solve import Trials, choose_centroids
from spectralquant.evaluation.measure import measure
from spectralquant.evaluation.tiers import measure_tiers
from spectralquant.geometry import BLOCK
from spectralquant.methods.base import Method
from spectralquant.methods.coding.spectral import SpectralFixed, fixed_codec, tier_method
from spectralquant.models.forward import with_cache
from spectralquant.models.identity import model_identity, weights_sha256
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.schema import TierSummary
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.caches import ResidentRow
from spectralquant.results.files import results_file
from spectralquant.results.kept import kept_rows
from spectralquant.results.quality import MethodRow
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.tokens import TokenText, tokens_sha256

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TierStudy:
    """Ratios to measure per tier; the first of each goes into the profile that the resident cache uses."""

    steps: int = 80
    window: int = 2048
    windows: int = 24
    hot: tuple[float, ...] = (4, 5)
    warm: tuple[float, ...] = (8, 10)
    cold: tuple[float, ...] = (60,)
    resident_context: int = 8192
    part: str = "report"


def tier_study(
    loaded: LoadedModel,
    text: TokenText,
    study: TierStudy,
    text_name: str,
    progress: Progress = lambda stage, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> Results:
    """Calibrate all tiers, measure every ratio, then hold 8192 tokens in real caches; returns a results file."""
    windows = scored_windows(text, study.steps, study.window, study.windows, study.part)
    settings = CalibrationSettings(
        steps=study.steps, window=study.window, held_out_windows=1, held_out_window=study.window, tiers=TIERS
    )
    run = CalibrationRun(loaded, text, settings, text_name, kept.path("calibration"), kept.resume, None, progress)
    sums, samples = run.first_pass()
    tiers: dict[str, Any] = {}
    methods: list[Method] = []
    for name in ("hot", "warm"):
        progress(f"{name} tier", 0, 1)
        fitter = run.fixed_fitter(name, sums, samples)
        for ratio in getattr(study, name):
            tier = fitter.fit(16 / ratio)
            tiers.setdefault(name, tier)
            codec = fixed_codec(name == "hot")(tier, loaded.geometry, loaded.device)
            methods.append(SpectralFixed(codec, target_ratio=ratio))
    fitter = run.cold_fitter(sums, samples)
    summaries: dict[str, TierSummary] = {}
    for ratio in study.cold:
        tier, found = fitter.fit(fitter.step_for_ratio(ratio))
        tier = choose_centroids(tier, Trials(loaded, run.held_out, measure_tiers, progress))[0]
        tiers.setdefault("cold", tier)
        summaries.setdefault("cold", run.cold_summary(ratio, found))
        methods.append(tier_method(tier, loaded, target_ratio=ratio))

    def score() -> list[MethodRow]:
        found = measure(loaded.model, loaded.geometry, windows, methods, lambda d, t: progress("2K windows", d, t))
        return [m.row(loaded.geometry, loaded.name, study.window) for m in found]

    rows = kept_rows(kept, "short windows", MethodRow, score)
    profile = run.assemble(sums, tiers, summaries)
    profile.seal()
    long = windows.reshape(-1)[: study.resident_context]
    resident = [
        row
        for name in (("exact", *tiers) if len(long) > 3 * BLOCK else ())
        for row in kept_rows(
            kept, f"cache {name}", ResidentRow, lambda name=name: [resident_row(loaded, profile, name, long, progress)]
        )
    ]
    return results_file(
        "tiers",
        rows,
        provenance(
            **device_facts(loaded.device),
            model=loaded.name,
            weights_sha256=weights_sha256(loaded.model),
            text=text_name,
            part_of_text=study.part,
            calibration_sha256=tokens_sha256(run.windows),
            evaluation_sha256=tokens_sha256(windows),
            dtype=str(loaded.model.dtype),
            seed=0,
        ),
        resident=resident,
    )


@torch.no_grad()
def resident_row(
    loaded: LoadedModel, profile: CalibrationProfile, tier: str, ids: Tensor, progress: Progress
) -> ResidentRow:
    """Feed `ids: [T]` block by block to a bfloat16 copy of the model with a cache of one tier; measure what it holds."""
    model = copy.deepcopy(loaded.model).to(torch.bfloat16)
    profile = replace(profile, sidecar=profile.sidecar.model_copy(deep=True), codecs={})
    profile.sidecar.model = model_identity(loaded.name, model, loaded.geometry)
    cache = SpectralCache(model, profile, tier=tier, background=False)
    exact = SpectralCache(model, background=False)
    kl = scored = 0.0
    for start in range(0, len(ids), BLOCK):
        progress(f"resident {tier}", start, len(ids))
        part = ids[None, start : start + BLOCK].to(loaded.device)
        mine = model(input_ids=part, **with_cache(model, cache)).logits[0].float().log_softmax(-1)
        if tier != "exact":
            theirs = model(input_ids=part, **with_cache(model, exact)).logits[0].float().log_softmax(-1)
            kl += float((theirs.exp() * (theirs - mine)).sum())
        scored += part.shape[1]
    stats = cache.stats()
    return ResidentRow(
        tier=tier,
        context=len(ids),
        dtype="bfloat16",
        kl_nats=kl / scored,
        n_tokens=int(scored),
        payload_ratio=stats.payload_ratio,
        resident_ratio=stats.resident_ratio,
        resident_bytes=stats.resident_bytes,
        fp16_bytes=stats.fp16_bytes,
        exact_bytes=stats.exact_bytes,
        tiers={name: vars(t) for name, t in stats.tiers.items()},
        pool_fragmentation=stats.pool_fragmentation,
    )
