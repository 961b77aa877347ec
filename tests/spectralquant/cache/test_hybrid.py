"""Exact or H2O below the crossover, spectral above it."""

import copy

import pytest
import torch
from conftest import profile_of
from transformers import DynamicCache

from spectralquant.cache.hybrid import HybridCacheManager
from spectralquant.errors import InputError


def ids(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 500, (1, tokens), generator=torch.Generator().manual_seed(seed))


def test_short_contexts_stay_exact_and_long_ones_are_coded():
    loaded, profile = profile_of("llama")
    model = loaded.model
    cache, plain = HybridCacheManager(model, profile, crossover=500, tier="hot"), DynamicCache(config=model.config)
    with torch.no_grad():
        for part in ids(480).split(48, dim=1):
            mine, theirs = model(input_ids=part, past_key_values=cache), model(input_ids=part, past_key_values=plain)
            assert torch.equal(mine.logits, theirs.logits)
        assert not cache.stats().tiers
        model(input_ids=ids(40, 1), past_key_values=cache)
    assert cache.stats().tiers["hot"].tokens == 380


def test_h2o_selects_what_a_dense_computation_selects():
    loaded, profile = profile_of("llama")
    model = loaded.model
    cache = HybridCacheManager(model, profile, below="h2o", heavy=32, recent=64)
    prompt = ids(300)
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        model(input_ids=prompt, past_key_values=cache)
        eager = copy.deepcopy(model)
        eager.set_attn_implementation("eager")
        for probabilities in eager(input_ids=prompt, output_attentions=True).attentions:
            seen.append(probabilities.sum(2).view(1, 2, 2, -1).sum(2))
        for layer in range(3):
            assert torch.allclose(cache.attended[layer], seen[layer], atol=1e-3)
            chosen = cache.view(layer).chosen
            heavy = seen[layer][..., : 300 - 64].topk(32).indices.sort(-1).values
            assert (chosen[..., :32] == heavy).float().mean() > 0.95
            assert torch.equal(chosen[0, 0, 32:], torch.arange(300 - 64, 300))
        model(input_ids=ids(1, 2), past_key_values=cache)
    assert cache.view(0).chosen.shape == (1, 2, 96)


def test_switching_from_h2o_loses_nothing():
    loaded, profile = profile_of("llama")
    model = loaded.model
    cache = HybridCacheManager(model, profile, tier="exact", crossover=310, below="h2o", heavy=32, recent=64)
    with torch.no_grad():
        model(input_ids=ids(300), past_key_values=cache)
        for i in range(20):
            model(input_ids=ids(1, i), past_key_values=cache)
    assert cache.stats().tiers["exact"].tokens == 124
    assert cache.view(0).dense()[0].shape[2] == 320
    assert not cache.selecting


@pytest.mark.parametrize("options", [{"below": "h3o"}, {"crossover": 0}, {"heavy": 0}])
def test_bad_options_are_refused(options):
    loaded, profile = profile_of("llama")
    with pytest.raises(InputError):
        HybridCacheManager(loaded.model, profile, **options)


def test_copies_keep_their_options():
    loaded, profile = profile_of("llama")
    cache = HybridCacheManager(loaded.model, profile, crossover=400, below="h2o", heavy=16)
    with torch.no_grad():
        loaded.model(input_ids=ids(200), past_key_values=cache)
    other = copy.deepcopy(cache)
    assert other.hybrid == cache.hybrid
    assert all(torch.equal(a, b) for a, b in zip(other.attended, cache.attended, strict=True))
    assert cache.stats().exact_bytes >= sum(t.untyped_storage().nbytes() for t in cache.own_tensors().values()) > 0


def test_importance_is_counted_while_h2o_selects():
    """Otherwise the cold tier would take every token for one that nobody reads."""
    loaded, profile = profile_of("llama")
    options = {"tier": "cold", "crossover": 10_000, "background": False}
    plain = HybridCacheManager(loaded.model, profile, **options)
    selecting = HybridCacheManager(loaded.model, profile, below="h2o", heavy=32, recent=64, **options)
    with torch.no_grad():
        for cache in (plain, selecting):
            loaded.model(input_ids=ids(200), past_key_values=cache)
    assert torch.allclose(selecting.layers[1].received, plain.layers[1].received, atol=1e-4)
    with torch.no_grad():
        for i in range(5):
            loaded.model(input_ids=ids(1, i), past_key_values=selecting)
    assert selecting.layers[1].received.shape[2] == 205
    assert float(selecting.layers[1].received[..., :-1].sum()) > float(plain.layers[1].received.sum())


def test_the_crossover_comes_from_a_profile(tmp_path):
    from spectralquant.cache.hybrid import measured_crossover
    from spectralquant.files import write_json
    from spectralquant.results.files import results_file

    rows = [
        {"kernel": "spectral_decode", "batch": b, "tokens": t, "bound": "interpolated"}
        for b, t in ((1, 9063), (2, None))
    ]
    write_json(tmp_path / "p.json", results_file("profile", [], {}, crossover=rows).as_json())
    assert measured_crossover(tmp_path / "p.json") == 9063
    with pytest.raises(InputError, match="was not faster at batch 2"):
        measured_crossover(tmp_path / "p.json", batch=2)
    with pytest.raises(InputError, match="no crossover of spectral_index_decode at batch 1; batches it has: none"):
        measured_crossover(tmp_path / "p.json", kernel="spectral_index_decode")
