"""Text that turns from prose to code under a profile of prose: the cold tier as it is, and with ranks that follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.codec.cold.adaptive import AdaptiveRankCompressor
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.errors import SourceError
from spectralquant.evaluation.measure import measure
from spectralquant.methods.base import Method
from spectralquant.methods.coding.spectral import SpectralCold
from spectralquant.models.identity import weights_sha256
from spectralquant.models.load import LoadedModel
from spectralquant.models.weights import embedding_weight
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.tokens import TokenText, tokens_sha256

RATIO = 40.0
STEP_SCALES = (1.0, 0.7, 0.5, 0.35)
TOLERANCES = (2.0, 4.0, 8.0)
MIN_RATIO = 8.0
HALF = 1024


def adaptive_study(
    loaded: LoadedModel,
    prose: TokenText,
    code: TokenText,
    names: tuple[str, str],
    steps: int,
    window: int,
    windows: int,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> Results:
    """Calibrate on `prose`; score windows of 1,024 prose tokens followed by 1,024 of code; returns a results file."""
    settings = CalibrationSettings(steps=steps, window=window, held_out_windows=1, held_out_window=window)
    run = CalibrationRun(loaded, prose, settings, names[0], kept.path("calibration"), kept.resume, None, progress)
    sums, samples = run.first_pass()
    fitter = run.cold_fitter(sums, samples)
    tier, found = fitter.fit(fitter.step_for_ratio(RATIO))
    summary = run.cold_summary(RATIO, found)
    heads = run.assemble(sums, {"cold": tier}, {"cold": summary}).heads
    every = prose.windows(HALF)
    if len(every) * HALF < (steps + 2) * window + windows * HALF:
        raise SourceError("The prose has too few tokens left to score; use fewer --steps or --windows.")
    mixed = torch.cat([every[-windows:], code.windows(HALF)[-windows:]], dim=1)
    embedding = embedding_weight(loaded.model)

    def codec(scale: float) -> SpectralCodec:
        return SpectralCodec(tier, loaded.geometry, embedding, loaded.device, scale)

    methods: list[Method] = [SpectralCold(codec(s), target_ratio=RATIO, step_scale=s) for s in STEP_SCALES]
    followers = [
        AdaptiveRankCompressor(codec(1.0), heads, found.step, tolerance=t, min_ratio=MIN_RATIO) for t in TOLERANCES
    ]
    methods += [
        SpectralCold(f, target_ratio=RATIO, adaptive_ranks=True, tolerance=t)
        for f, t in zip(followers, TOLERANCES, strict=True)
    ]

    def score() -> dict[str, Any]:
        found = measure(loaded.model, loaded.geometry, mixed, methods, lambda d, t: progress("prose to code", d, t))
        rows = [m.row(loaded.geometry, loaded.name, mixed.shape[1]).as_json() for m in found]
        blocks = mixed.shape[1] // 128 - 1
        return {"rows": rows, "first_window": [asdict(entry) for entry in followers[0].log[:blocks]]}

    scored = kept.value("scored", score)
    return results_file(
        "adaptive",
        scored["rows"],
        provenance(
            **device_facts(loaded.device),
            model=loaded.name,
            weights_sha256=weights_sha256(loaded.model),
            texts=list(names),
            calibration_sha256=tokens_sha256(run.windows),
            evaluation_sha256=tokens_sha256(mixed),
            dtype=str(loaded.model.dtype),
        ),
        first_window=scored["first_window"],
        switches_at=HALF,
    )
