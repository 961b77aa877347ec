"""A copy through pickle finds the model it was made for, among others with the same weights; pages of hot codes change layout beside it."""

import pickle

import pytest
import torch
from gpu_for_tests import filled, model_on, prompt, steps

from spectralquant import SpectralCache
from spectralquant.cache.binding import bound_model


@pytest.mark.parametrize("tier", ["exact", "warm"])
def test_a_copy_takes_the_model_of_its_own_number_format(tier):
    other, profile = model_on("cpu", torch.float32)
    model, _ = model_on("cpu", torch.bfloat16)
    for each in (other, model):
        SpectralCache(each, profile, tier=tier)
    assert SpectralCache(model, profile).binding.weights_sha256 == SpectralCache(other, profile).binding.weights_sha256
    for each in (other, model):
        cache = filled(each, profile, tier)
        again = pickle.loads(pickle.dumps(cache))
        assert again.binding.model.dtype == each.dtype
        assert torch.equal(steps(again.binding.model, again, prompt(3, seed=5)), steps(each, cache, prompt(3, seed=5)))


def test_without_facts_any_model_with_the_weights_is_taken():
    model, profile = model_on("cpu")
    binding = SpectralCache(model, profile).binding
    taken = bound_model(binding.weights_sha256, binding.geometry.windows)
    assert taken is not None and bound_model("other", binding.geometry.windows) is None
