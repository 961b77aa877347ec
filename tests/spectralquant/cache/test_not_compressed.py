"""Nothing goes uncompressed in silence: what was not compressed is warned of once, with the reason, and stands in stats."""

import gc
import subprocess
import sys
import warnings

import pytest
import torch
from conftest import profile_of, random_model
from transformers import DynamicCache

from spectralquant import NotCompressedWarning, SpectralCache
from spectralquant.cache.generation import GenerationOptions, generate_text
from spectralquant.cache.hybrid import HybridCacheManager

CODED = ["hot", "warm", "cold"]


def ids(tokens: int, seed: int = 0, rows: int = 1) -> torch.Tensor:
    return torch.randint(5, 500, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def cache_of(tier: str = "hot", **options) -> tuple[torch.nn.Module, SpectralCache]:
    loaded, profile = profile_of("llama")
    profile = None if tier == "exact" else profile
    return loaded.model, SpectralCache(loaded.model, profile, tier=tier, background=False, **options)


def generate(model, cache, tokens: int = 400, new: int = 6, **options) -> torch.Tensor:
    given = ids(tokens)
    settings = {"attention_mask": torch.ones_like(given), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(given, past_key_values=cache, max_new_tokens=new, **{**settings, **options})


def reasons(cache: SpectralCache) -> dict[str, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotCompressedWarning)
        return {each.reason: each.tokens for each in cache.stats().not_compressed}


@pytest.fixture
def silence():
    """No warning of ours may come."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCompressedWarning)
        yield


def longrope(**changes):
    half = 8
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1 + 0.05 * i for i in range(half)],
        "long_factor": [1.5 + i for i in range(half)],
        "original_max_position_embeddings": 512,
        "factor": 8.0,
    }
    shape = {"pad_token_id": 0, "partial_rotary_factor": 1.0, "original_max_position_embeddings": 512}
    return random_model("phi3", **{**shape, "rope_parameters": rope, **changes})


# What is compressed


@pytest.mark.parametrize(
    "options", [{}, {"prefill_chunk_size": 150}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 3}]
)
@pytest.mark.parametrize("tier", [*CODED, "exact"])
def test_generation_that_compresses_says_nothing(silence, tier, options):
    model, cache = cache_of(tier)
    generate(model, cache, **options)
    assert cache.stats().not_compressed == ()
    del cache
    gc.collect()


def test_a_prefill_with_one_logit_and_a_decode_loop_say_nothing(silence):
    model, cache = cache_of("warm")
    with torch.no_grad():
        model(ids(400), past_key_values=cache, logits_to_keep=1)
        assert reasons(cache) == {"unread": 252}, "so far"
        for i in range(3):
            model(ids(1, i), past_key_values=cache)
    assert cache.stats().not_compressed == ()


def test_an_exact_cache_is_asked_for_nothing(silence):
    model, cache = cache_of("exact")
    with torch.no_grad():
        model(ids(600), past_key_values=cache)
    assert cache.stats().not_compressed == ()


# Caches that generate drops


@pytest.mark.parametrize("tokens", [300, 500, 511, 512, 513, 900])
def test_a_cache_that_phi3_drops_is_taken_back(silence, tokens):
    """Keys change when a sequence passes 512 tokens: the model asks for all of them again, in the cache it was given."""
    model = longrope()
    cache = SpectralCache(model)
    expected = generate(model, DynamicCache(config=model.config), tokens, new=30)
    assert torch.equal(generate(model, cache, tokens, new=30), expected)
    assert cache.get_seq_length() == tokens + 29


def test_padded_rows_of_a_cache_that_phi3_drops(silence):
    model = longrope()
    given, cache = ids(520, rows=2), SpectralCache(model)
    mask = torch.ones_like(given)
    mask[0, :30] = 0
    both = [
        model.generate(given, attention_mask=mask, past_key_values=c, max_new_tokens=8, do_sample=False, pad_token_id=0)
        for c in (cache, DynamicCache(config=model.config))
    ]
    assert torch.equal(*both)
    assert cache.get_seq_length() == 527


class Dropper(type(random_model("llama"))):
    """A model whose generate feeds new tokens only, to a cache of its own: what was dropped cannot be taken back."""

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, **kwargs)
        if isinstance(past_key_values, SpectralCache):
            inputs["past_key_values"] = DynamicCache(config=self.config)
            inputs["input_ids"] = inputs["input_ids"][:, -7:]
            inputs.pop("position_ids", None)
        return inputs


def test_a_cache_that_stays_dropped_is_said_at_once():
    dropper = random_model("llama")
    dropper.__class__ = Dropper
    cache = SpectralCache(dropper, profile_of("llama")[1], tier="hot")
    with pytest.warns(NotCompressedWarning, match="dropped the cache") as said:
        generate(dropper, cache)
    assert len(said) == 1
    assert "dropped" in reasons(cache)
    assert cache.get_seq_length() == 0


def test_a_pass_without_the_cache_outside_generate_is_nobodys_business(silence):
    model, cache = cache_of("hot")
    with torch.no_grad():
        model(ids(300))
    generate(model, DynamicCache(config=model.config))
    assert reasons(cache) == {"never_used": 0}


def test_another_cache_of_the_same_model_does_not_speak_for_this_one(silence):
    model, cache = cache_of("hot")
    other = cache_of("warm")[1]
    generate(model, other)
    assert reasons(other) == {}
    assert reasons(cache) == {"never_used": 0}


def test_gradient_checkpointing_stores_nothing_and_that_is_said():
    model = random_model("llama")
    cache = SpectralCache(model, profile_of("llama")[1], tier="hot")
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.warns(NotCompressedWarning, match="stored nothing"):
        model(ids(300), past_key_values=cache)
    assert cache.get_seq_length() == 0
    assert "not_called" in reasons(cache)


# Too short, or read before it was compressed


@pytest.mark.parametrize("tokens", [1, 100, 255])
def test_a_short_sequence_is_said_when_stats_are_asked_for(tokens):
    model, cache = cache_of("hot")
    generate(model, cache, tokens, new=1)
    with pytest.warns(NotCompressedWarning, match="begins at 256 tokens"):
        stats = cache.stats()
    assert [(r.reason, r.tokens) for r in stats.not_compressed] == [("below_window", tokens)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.stats().not_compressed, "said once, shown always"


def test_256_tokens_are_enough(silence):
    model, cache = cache_of("hot")
    generate(model, cache, 255, new=3)
    assert cache.coded_tokens == 124
    assert cache.stats().not_compressed == ()


def test_a_wider_window_is_named():
    model, cache = cache_of("hot", window=512)
    generate(model, cache, 600, new=2)
    with pytest.warns(NotCompressedWarning, match="512 to 639 newest.*begins at 640 tokens"):
        cache.stats()


def test_a_short_sequence_is_said_when_its_cache_goes():
    model, cache = cache_of("hot")
    generate(model, cache, 50)
    with pytest.warns(NotCompressedWarning, match="Nothing was compressed"):
        del cache
        gc.collect()


@pytest.mark.slow
def test_a_short_sequence_is_said_when_the_program_ends(tmp_path):
    model, cache = cache_of("warm")
    model.save_pretrained(tmp_path / "model")
    cache.profile.save(tmp_path / "profile")
    code = (
        "import torch, spectralquant as sq; from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'model')!r})\n"
        f"profile = sq.CalibrationProfile.load({str(tmp_path / 'profile')!r})\n"
        "cache = sq.SpectralCache(model, profile, tier='warm')\n"
        "model.generate(torch.arange(5, 30)[None], past_key_values=cache, max_new_tokens=2, pad_token_id=0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "NotCompressedWarning: Nothing was compressed" in done.stderr


def test_below_a_crossover_nothing_is_expected(silence):
    loaded, profile = profile_of("llama")
    cache = HybridCacheManager(loaded.model, profile, tier="hot", crossover=900)
    generate(loaded.model, cache, 500)
    assert reasons(cache) == {"below_compress_from": 505}
    cache.stats()


@pytest.mark.parametrize("tier", CODED)
def test_a_text_scored_in_one_pass_is_said_where_it_happens(tier):
    model, cache = cache_of(tier)
    with torch.no_grad():
        exact = model(ids(700)).logits
        with pytest.warns(NotCompressedWarning, match="700 tokens were computed in one forward pass"):
            scored = model(ids(700), past_key_values=cache).logits
    assert torch.allclose(scored, exact, atol=1e-5), "no loss shows"
    assert reasons(cache) == {"single_pass": 700, "unread": 508}


def test_a_text_scored_in_pieces_is_measured(silence):
    model, cache = cache_of("hot")
    with torch.no_grad():
        exact = model(ids(700)).logits
        parts = [model(part, past_key_values=cache).logits for part in ids(700).split(128, dim=1)]
    assert not torch.allclose(torch.cat(parts, dim=1), exact, atol=1e-2)
    assert cache.stats().not_compressed == ()


def test_what_was_packed_saved_or_copied_was_of_use(silence, tmp_path):
    import copy

    for use in (lambda c: c.pack(), lambda c: c.save(tmp_path / "c"), copy.deepcopy):
        model, cache = cache_of("cold")
        with torch.no_grad():
            model(ids(400), past_key_values=cache, logits_to_keep=1)
        use(cache)
        assert reasons(cache) == {}


def test_reset_begins_another_run(silence):
    model, cache = cache_of("hot")
    generate(model, cache)
    cache.reset()
    assert reasons(cache) == {"never_used": 0}
    generate(model, cache)
    assert reasons(cache) == {}


# The command line's function


def test_generate_text_tells_in_stats_not_in_warnings(silence):
    loaded, profile = profile_of("llama")
    made = generate_text(loaded, profile, "The tea", GenerationOptions(tier="hot", new_tokens=3))
    [reason] = made.stats.not_compressed
    assert reason.reason == "below_window"
    assert made.stats.as_dict()["not_compressed"][0]["message"] == reason.message
