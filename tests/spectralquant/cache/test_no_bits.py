"""Layers and heads that a tight target gives no bits to: read as the profile's mean, by every way of reading."""

import copy
import dataclasses
import functools

import pytest
import torch
from conftest import SMALL_CALIBRATION, random_model, small_tokenizer
from transformers import DynamicCache

from spectralquant import SpectralCache
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.targets import parse_target
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize


@functools.cache
def starved():
    """A model and a profile in which whole layers have no bits."""
    model = random_model("llama")
    loaded = LoadedModel("starved", model, small_tokenizer(), probe_geometry(model))
    targets = {"cold": parse_target("ratio=60"), "warm": parse_target("ratio=60"), "hot": parse_target("ratio=30")}
    text = tokenize(small_tokenizer(), load_text("builtin:pydoc"), 10_000)
    return model, calibrate_model(loaded, text, dataclasses.replace(SMALL_CALIBRATION, targets=targets))


def ids(tokens: int) -> torch.Tensor:
    return torch.randint(5, 500, (1, tokens), generator=torch.Generator().manual_seed(0))


def test_whole_layers_have_no_bits():
    _, profile = starved()
    for tier in ("hot", "warm"):
        ranks = profile.tier(tier).key.ranks.view(3, -1).sum(1)
        assert ranks[0] > 0 and not ranks[1:].all(), ranks


@pytest.mark.parametrize(("tier", "kernels"), [("hot", "auto"), ("hot", "triton"), ("warm", "auto"), ("cold", "auto")])
@pytest.mark.slow
def test_every_way_of_reading(tier, kernels, tmp_path):
    model, profile = starved()
    cache = SpectralCache(model, profile, tier=tier, kernels=kernels, background=False)
    with torch.no_grad():
        model(ids(600), past_key_values=cache, logits_to_keep=1)
        dense = DynamicCache(config=model.config)
        for layer in range(3):
            dense.update(*cache.view(layer, 0).dense(), layer)
        expected = model(ids(1), past_key_values=dense).logits
        cache.save(tmp_path / "cache")
        copies = [copy.deepcopy(cache), SpectralCache.load(tmp_path / "cache", model, profile)]
        for each in (cache, *copies):
            assert torch.allclose(model(ids(1), past_key_values=each).logits, expected, atol=1e-3)
    assert cache.stats().payload_ratio > 6
    cache.crop(-400)
    assert cache.get_seq_length() == 201
    again = SpectralCache.unpack(model, profile, cache.pack(), background=False)
    assert again.get_seq_length() == 201
