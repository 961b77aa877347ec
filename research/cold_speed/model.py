"""The study of packets' speed with statistics of a model, profile and text of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from research.coder.model import sample_of_model
from research.cold_speed.costs import WINDOW as QUALITY_WINDOW
from research.cold_speed.costs import QualityOf
from research.cold_speed.parts import CONTEXTS, Bearings, Progress
from research.cold_speed.sample import SpeedSample
from research.cold_speed.study import Save, cold_speed_study, require_gpu
from spectralquant.models.load import LoadedModel
from spectralquant.models.shapes import ModelShape
from spectralquant.profile.model import CalibrationProfile
from spectralquant.results.schema import Results
from spectralquant.text.tokens import TokenText

QUALITY_WINDOWS = 2


def cold_speed_study_of_model(
    loaded: LoadedModel,
    profile: CalibrationProfile,
    text: TokenText,
    window: int,
    text_name: str,
    *,
    parts: Sequence[str] = (),
    earlier: Results | None = None,
    keep_sample: Path | None = None,
    save: Save = lambda result: None,
    progress: Progress = lambda stage, done, total: None,
) -> Results:
    """See `study.cold_speed_study`. keep_sample: where what it takes from the model is written, for a machine without it."""
    progress("packing a prompt", 0, 1)
    symbols = sample_of_model(loaded, profile, text, window, text_name)
    sample = SpeedSample(symbols, text.windows(window).flatten()[-max(CONTEXTS) :].long().cpu())
    if keep_sample is not None:
        sample.save(keep_sample)
    require_gpu(loaded.device, parts)
    own = ModelShape.of_config(loaded.name, loaded.model.config)
    quality = QualityOf(profile, text_name, lambda device: (loaded, text.windows(QUALITY_WINDOW)[-QUALITY_WINDOWS:]))
    at = Bearings(sample, own, loaded.device, quality=quality, progress=progress)
    return cold_speed_study(at, parts, earlier, save)
