"""A model whose layers lie on several devices: where its sums are, what it may use, and the same profile as on one."""

from __future__ import annotations

import pytest
import torch
from conftest import small_tokenizer

import spectralquant as sq
from spectralquant.calibration.capture.statistics import SpanMoments
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.plan import PlannedModel, Planner
from spectralquant.errors import InputError
from spectralquant.models.load import pick_device
from spectralquant.models.random_model import random_config, random_model
from spectralquant.models.shapes import parse_shape
from spectralquant.models.spread import spread_places
from spectralquant.text.read import load_text

SHAPE = "custom:layers=8,heads=4,kv_heads=2,head_dim=16,vocab=400"


def on_meta(shape):
    with torch.device("meta"):
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM(random_config(parse_shape(shape)))


def test_sums_lie_where_the_middle_layer_of_their_span_does():
    devices = ["cpu"] * 3 + ["meta"] * 5
    moments = SpanMoments(8 * 32, 4 * 32, "cpu", devices)
    assert [m.device.type for m in moments.second] == ["cpu", "meta"]
    moments = SpanMoments(8 * 32, 16, "cpu", devices)
    assert [m.device.type for m in moments.metric] == ["cpu"] * 6 + ["meta"] * 10
    assert moments.sum.device.type == "cpu"


def test_layers_are_spread_evenly_and_never_cut():
    places = spread_places(on_meta("llama-3.1-70b"), torch.bfloat16, {i: 78 << 30 for i in range(4)})
    layers = [places[f"model.layers.{i}"] for i in range(80)]
    counts = [layers.count(f"cuda:{i}") for i in range(4)]
    assert layers == sorted(layers) and sum(counts) == 80 and max(counts) - min(counts) <= 2
    with pytest.raises(InputError, match="141 GB do not fit"):
        spread_places(on_meta("llama-3.1-70b"), torch.bfloat16, {0: 78 << 30})


def test_a_plan_of_several_cards_is_that_of_the_fullest():
    config, settings = random_config(parse_shape("llama-3.1-70b")), CalibrationSettings(steps=100, window=2048)
    whole, part = (PlannedModel.of_config("x", config, 2, devices) for devices in (1, 4))
    assert part.layers == 20 and whole.weights / 4 <= part.weights <= 1.05 * whole.weights / 4
    one, four = (Planner(model, cuda=True).plan(settings) for model in (whole, part))
    assert four.stages[0].parts["statistics"] < 0.35 * one.stages[0].parts["statistics"]  # features stay on the first
    for name in ("weights", "activations"):
        assert four.stages[0].parts[name] == pytest.approx(one.stages[0].parts[name] / 4, rel=0.05)
    assert four.profile == one.profile  # of the whole model


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without GPUs is told")
def test_without_gpus_it_is_refused():
    with pytest.raises(InputError, match="no GPUs"):
        pick_device("all")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_profile_is_that_of_one_device():
    model, _ = random_model(SHAPE, torch.float32, torch.device("cuda", 0), spread=True)
    assert len(set(model.hf_device_map.values())) > 1
    plain, _ = random_model(SHAPE, torch.float32, torch.device("cuda", 0))
    plain.load_state_dict(model.state_dict())
    settings = CalibrationSettings(window=384, tiers=("cold", "warm", "hot"), held_out_windows=1, held_out_window=512)
    made = [
        sq.calibrate(
            m.eval(), small_tokenizer(), list(load_text("builtin:pydoc")), steps=3, settings=settings, name="x"
        )
        for m in (model, plain)
    ]
    ours, theirs = (profile.heads.variance for profile in made)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.max()))
    assert made[0].sidecar.model.weights_sha256_bfloat16 == made[1].sidecar.model.weights_sha256_bfloat16
    assert made[0].sidecar.run["stages_peak_bytes_by_device"]
