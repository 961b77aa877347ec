"""The study of packets' speed with statistics of a model, profile and text of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from research.coder.model import sample_of_model
from research.cold_speed.sample import SpeedSample
from research.cold_speed.study import CONTEXTS, Progress, cold_speed_study
from spectralquant.models.load import LoadedModel
from spectralquant.models.shapes import ModelShape
from spectralquant.profile.model import CalibrationProfile
from spectralquant.text.tokens import TokenText


def cold_speed_study_of_model(
    loaded: LoadedModel,
    profile: CalibrationProfile,
    text: TokenText,
    window: int,
    text_name: str,
    keep_sample: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """See `study.cold_speed_study`. keep_sample: where what it takes from the model is written, for a machine without it."""
    progress("packing a prompt", 0, 1)
    symbols = sample_of_model(loaded, profile, text, window, text_name)
    sample = SpeedSample(symbols, text.windows(window).flatten()[-max(CONTEXTS) :].long().cpu())
    if keep_sample is not None:
        sample.save(keep_sample)
    own = ModelShape.of_config(loaded.name, loaded.model.config)
    return cold_speed_study(sample, own, loaded.device, progress=progress)
