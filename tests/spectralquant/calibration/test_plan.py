"""The memory plan: it counts what is really held, fits what it can, and refuses with a way out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import random_model

from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.plan import PlannedModel, Planner, memory_of, plan_for
from spectralquant.calibration.sums import CalibrationSums
from spectralquant.codec.cold.features import TokenFeatures
from spectralquant.errors import InputError
from spectralquant.models.config import parameter_count
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.models.random_model import random_config
from spectralquant.models.shapes import parse_shape
from sqcli.terminal.plan import plan_lines

GB = 10**9
SETTINGS = CalibrationSettings(steps=100, window=2048)


@pytest.fixture(scope="module")
def eight():
    return PlannedModel.of_config("8b", random_config(parse_shape("llama-3.1-8b")), 2)


def test_weights_are_counted_without_being_made(eight):
    assert eight.weights == 2 * 8_030_261_248
    small = random_model()
    assert parameter_count(small.config) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("metric", ["fisher", "attention", "energy"])
@pytest.mark.parametrize("tiers", [("cold",), ("cold", "warm", "hot")])
def test_statistics_are_those_that_a_run_holds(metric, tiers):
    model = random_model(hidden_size=128, num_hidden_layers=4)
    loaded = LoadedModel("x", model, None, probe_geometry(model))
    settings = replace(SETTINGS, metric=metric, tiers=tiers, span="2")
    features = TokenFeatures(model.get_input_embeddings().weight)
    sums = CalibrationSums(model, loaded.geometry, settings.span_width(loaded.geometry), features, settings)
    real = sum(t.numel() * t.element_size() for t in sums.state().values())
    if metric != "fisher":  # the metric's own sums are empty then
        real -= sum(t.numel() * 4 for name, t in sums.state().items() if ".metric." in name)
        real += 0 if metric == "energy" else sums.output_gram.numel() * 8
    planned = Planner(PlannedModel.of_loaded(loaded), cuda=False).plan(settings).stages[0].parts["statistics"]
    assert planned == pytest.approx(real, rel=0.1)


def test_a_large_card_takes_the_settings_as_they_are(eight):
    plan = plan_for(eight, SETTINGS, 80 * GB)
    assert plan.settings == SETTINGS and plan.span == 32768 and plan.peak < 60 * GB


@pytest.mark.parametrize("memory", [24, 32, 48])
def test_a_smaller_card_gets_a_plan_that_fits(eight, memory):
    plan = plan_for(eight, SETTINGS, memory * GB)
    assert plan.peak <= 0.93 * memory * GB
    assert plan.settings.recompute and plan.settings.steps == 100
    assert plan.peak > eight.weights


def test_spans_that_the_user_chose_stay(eight):
    with pytest.raises(InputError, match="needs"):
        plan_for(eight, replace(SETTINGS, span="all", predict="none"), 24 * GB)


def test_what_cannot_fit_is_refused_with_advice(eight):
    with pytest.raises(InputError, match="offload the weights"):
        plan_for(eight, SETTINGS, 16 * GB)


def test_without_a_gpu_nothing_limits(eight):
    assert memory_of(torch.device("cpu"), None) is None
    assert memory_of(torch.device("cpu"), "22GB") == 22 * GB
    assert plan_for(eight, SETTINGS, None).settings == SETTINGS


def test_running_layers_again_takes_less(eight):
    kept, again = (Planner(eight, cuda=True).plan(replace(SETTINGS, recompute=r)) for r in (False, True))
    assert again.stages[0].peak < 0.7 * kept.stages[0].peak


def test_a_plan_says_what_two_levels_leave_out(eight):
    two, dense = (Planner(eight, cuda=True).plan(replace(SETTINGS, basis=basis)) for basis in ("two-level", "dense"))
    assert two.inner == 8192 and dense.inner is None
    assert "two levels" in " ".join(plan_lines(two)) and "two levels" not in " ".join(plan_lines(dense))
