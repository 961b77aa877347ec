"""Layers whose codes are let go take finer steps: their bits cost less, and all errors are in units of one step."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import SMALL_CALIBRATION, random_model, small_tokenizer

from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibrating.check import exact_blocks
from spectralquant.calibration.run import CalibrationRun
from spectralquant.codec.cold.complement.bounded import weights
from spectralquant.geometry import USUAL_CONTEXT
from spectralquant.methods.coding.spectral import BoundedSpec, cold_parts, tier_method
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.profile.promises import FREE
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

WINDOW = 512
SETTINGS = replace(SMALL_CALIBRATION, tiers=("cold",), window=1024)


@pytest.fixture(scope="module")
def sliding() -> tuple[LoadedModel, torch.Tensor]:
    model = random_model("gemma3_text", sliding_window=WINDOW)
    tokenizer = small_tokenizer()
    return LoadedModel("small-sliding", model, tokenizer, probe_geometry(model)), tokenize(
        tokenizer, load_text("builtin:pydoc"), 20_000
    )


@pytest.fixture(scope="module")
def profile(sliding):
    loaded, text = sliding
    return calibrate_model(loaded, text, SETTINGS)


def test_steps_are_finer_by_the_root_of_what_is_held(sliding):
    loaded, text = sliding
    run = CalibrationRun(loaded, text, SETTINGS, "text", None, False, None, lambda *_: None)
    assert [run._held_share(layer) for layer in range(3)] == pytest.approx(
        [WINDOW / USUAL_CONTEXT] * 2 + [1.0], rel=0.01
    )
    sums, samples = run.first_pass()
    fitter = run.cold_fitter(sums, samples)
    assert sorted(fitter.shares) == pytest.approx([0.25, 1.0], rel=0.01)
    tier, report = fitter.fit(0.02)
    assert report.step == 0.02
    for part, own, share in zip(tier.parts, fitter.fitters, fitter.shares, strict=True):
        alone, _ = own.fit(0.02 * math.sqrt(share))
        assert torch.equal(part.key.gain, alone.key.gain)
    bits = [
        f.report(0.02 * math.sqrt(s)).bits_per_token * s for f, s in zip(fitter.fitters, fitter.shares, strict=True)
    ]
    assert report.bits_per_token == pytest.approx(sum(bits))
    kept = [fitter.kept(kind, 0.02) for kind in range(2)]
    assert [len(k) for k in kept] == [sum(len(getattr(p, n).gain) for p in tier.parts) for n in ("key", "value")]


def test_errors_of_all_layers_are_in_units_of_the_same_step(sliding, profile):
    loaded, text = sliding
    spec = BoundedSpec(profile.heads, profile.sidecar.tiers["cold"].step, FREE)
    method = tier_method(profile.tier("cold"), loaded, bounded=spec)
    with torch.no_grad():
        block = list(exact_blocks(loaded, text.windows(1024)[0]))[3]
    ratios = []
    for layers, part in method.parts.items():
        own, codec = block.of_layers(layers), part.codec
        keys, values = part.decode(part.encode(own))
        run = codec.quantized([own])
        left = codec.heads.project(own.keys - keys, own.values - values)
        error = codec.heads.error(left * codec.heads.kind_steps(weights(run.classes)).sqrt())
        ratios.append(error / codec.errors[-1].first)
    assert len(ratios) == 2 == len(cold_parts(method))
    assert max(ratios) / min(ratios) < 2, ratios
