"""`python -m research.serving.large FOLDER PROFILE SPEC [RATIO]`: a random model's folder, and a profile for serving it; neither
where its name is empty."""

from __future__ import annotations

import sys
from pathlib import Path

from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.targets import Ratio
from spectralquant.models.load import load_model
from spectralquant.text.mix import tokenize_sources
from spectralquant.text.read import open_sources

STEPS = 2
WINDOW = 384


def make(folder: Path | None, profile: Path | None, spec: str, ratio: float = 20) -> None:
    """Random weights in bfloat16 (the engine reads the very same), and statistics of two short windows."""
    loaded = load_model(spec, device="auto", dtype="bfloat16", offline=True)
    if folder is not None:
        loaded.model.save_pretrained(folder)
    if profile is None:
        return
    sources = open_sources(["builtin:pydoc"], offline=True)
    text = tokenize_sources(loaded.tokenizer, sources, (STEPS + 8) * WINDOW + 4096, window=WINDOW)
    settings = CalibrationSettings(
        steps=STEPS,
        window=WINDOW,
        targets={"cold": Ratio(ratio)},
        span="layer",
        purpose="serving",
        predict="none",
        held_out_windows=1,
        held_out_window=WINDOW,
    )
    made = calibrate_model(loaded, text, settings, text_name="builtin:pydoc")
    assert made is not None
    made.save(profile)


if __name__ == "__main__":
    model, profile = (Path(word) if word else None for word in sys.argv[1:3])
    make(model, profile, sys.argv[3], *map(float, sys.argv[4:]))
