"""`python -m research.serving.hot_large PROFILE SPEC`: a hot profile that fits the cache of a large shape.

It is of a random model with the same cache but thin layers, which takes seconds; how many bits its codes have is what counts, its
qualities mean nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from research.serving.shape import cache_sizes
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.targets import parse_target
from spectralquant.models.load import LoadedModel, load_model
from spectralquant.models.probe import probe_geometry
from spectralquant.text.mix import tokenize_sources
from spectralquant.text.read import open_sources

STEPS, WINDOW, TARGET = 2, 384, "ratio=4"
HIDDEN = 256


def make(profile: Path, spec: str) -> None:
    """The profile."""
    tokenizer = load_model("builtin:smollm2-135m", device="cpu", offline=True).tokenizer
    thin = {"hidden_size": HIDDEN, "intermediate_size": HIDDEN, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **cache_sizes(spec), **thin)).eval()
    for (
        layer
    ) in model.model.layers:  # every layer then sees tokens as the first does, and keys and values get bits alike
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.data.zero_()
    if torch.cuda.is_available():
        model.cuda()
    text = tokenize_sources(
        tokenizer, open_sources(["builtin:pydoc"], offline=True), (STEPS + 8) * WINDOW + 4096, window=WINDOW
    )
    settings = CalibrationSettings(
        steps=STEPS,
        window=WINDOW,
        targets={"hot": parse_target(TARGET)},
        tiers=("hot",),
        hot_bits="even",
        metric="energy",
        purpose="serving",
        predict="none",
        held_out_windows=1,
        held_out_window=WINDOW,
    )
    made = calibrate_model(LoadedModel("thin", model, tokenizer, probe_geometry(model)), text, settings)
    assert made is not None
    made.save(profile)


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2])
