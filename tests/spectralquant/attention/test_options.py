"""What a model asks of its attention is passed on or refused, never dropped; weights come where the model gives them."""

import functools

import pytest
import torch
from conftest import SMALL_CALIBRATION, profile_of, random_model, small_tokenizer
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import eager_mask
from transformers.models.llama.modeling_llama import eager_attention_forward

from spectralquant import SpectralCache
from spectralquant.cache.read.segments import DenseSegment
from spectralquant.cache.read.spectral_attention import attend_segments
from spectralquant.calibrating.api import calibrate_model
from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.observe import attention_entropy, attention_received
from spectralquant.hooks.softmax import unknown_option
from spectralquant.hooks.standard import require_softmax
from spectralquant.hooks.tap import AttentionTap
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

WITH_SINKS = {
    "granite_swa": {"sliding_window": 64},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64},
    "flint": {},
}
ODD = {**WITH_SINKS, "gemma2": {}, "vaultgemma": {"head_dim": 16}, "llama": {}}


def odd_model(architecture, **changes):
    model = random_model(architecture, **{"pad_token_id": 0, **ODD[architecture], **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.fill_(3.0)
    return model


def ids(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 500, (1, tokens), generator=torch.Generator().manual_seed(seed))


def tapped(model, tokens: int = 80):
    calls = []
    with torch.no_grad(), AttentionTap(model, calls.append):
        model(ids(tokens), use_cache=False)
    return calls


@pytest.mark.parametrize("architecture", ODD)
def test_an_exact_cache_leaves_the_models_answers_alone(architecture):
    model = odd_model(architecture)
    with torch.no_grad():
        expected = model(ids(300)).logits
        found = model(ids(300), past_key_values=SpectralCache(model)).logits
        after = model(ids(300)).logits
    assert torch.equal(found, expected)
    assert torch.equal(after, expected)


@pytest.mark.parametrize("architecture", ODD)
def test_the_taps_view_of_attention_is_the_models(architecture):
    """Calibration captures through `run`: were an option dropped, it would see another model."""
    model = odd_model(architecture)
    with torch.no_grad():
        expected = model(ids(80), use_cache=False).logits
        with AttentionTap(model, lambda call: call.run()):
            found = model(ids(80), use_cache=False).logits
    assert torch.equal(found, expected)


@pytest.mark.parametrize("architecture", ODD)
def test_reading_in_place_computes_what_the_model_does(architecture):
    for call in tapped(odd_model(architecture)):
        output, p = attend_segments(call, [DenseSegment(call.key, call.value)], call.allowed())
        assert torch.allclose(output, call.run(), atol=1e-5)
        sinks = call.options.get("s_aux") is not None
        assert (float(p.sum(-1).max()) < 0.999) == sinks, "a sink takes part of the probability"


@functools.cache
def calibrated(architecture):
    """A model whose layers read everything, and its profile."""
    model = odd_model(architecture, layer_types=["full_attention"] * 3)
    loaded = LoadedModel(architecture, model, small_tokenizer(), probe_geometry(model))
    text = tokenize(small_tokenizer(), load_text("builtin:pydoc"), 10_000)
    return model, calibrate_model(loaded, text, SMALL_CALIBRATION)


@pytest.mark.parametrize("tier", ["hot", "warm", "cold"])
@pytest.mark.parametrize("architecture", ["granite_swa", "gemma2", "gpt_oss"])
def test_decoding_from_codes_minds_sinks_and_softcap(architecture, tier):
    """Against the model's own attention over what the same cache gives as dense tensors."""
    model, profile = calibrated(architecture)
    cache = SpectralCache(model, profile, tier=tier, background=False)
    with torch.no_grad():
        model(ids(400), past_key_values=cache, logits_to_keep=1)
        dense = DynamicCache(config=model.config)
        for layer in range(len(cache.layers)):
            dense.update(*cache.view(layer, 0).dense(), layer)
        expected = model(ids(1, 1), past_key_values=dense).logits
        found = model(ids(1, 1), past_key_values=cache).logits
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"softcap": 50.0, "s_aux": torch.zeros(4), "sliding_window": 64, "position_ids": torch.arange(3)}, None),
        ({"position_bias": None, "dropout": 0.0, "is_causal": True, "output_attentions": True}, None),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"sinks": torch.zeros(4)}, "sinks"),
        ({"is_causal": False}, "is_causal"),
        ({"cu_seq_lens_q": torch.zeros(2)}, "cu_seq_lens_q"),
    ],
)
def test_unknown_options_are_known_to_be_unknown(options, expected):
    assert unknown_option(options) == expected


def test_dropout_counts_in_training_only():
    assert unknown_option({"dropout": 0.1}) is None
    assert unknown_option({"dropout": 0.1}, training=True) == "dropout"


def temperature(module, query, key, value, attention_mask, scaling=None, sharper=1.0, **options):
    """A user's attention function with an option of its own."""
    return eager_attention_forward(module, query, key, value, attention_mask, scaling=scaling * sharper, **options)


AttentionInterface.register("temperature_for_tests", temperature)
AttentionMaskInterface.register("temperature_for_tests", eager_mask)


@pytest.mark.parametrize("tier", ["exact", "hot", "warm", "cold"])
def test_a_users_attention_function_gets_its_option(tier):
    profile = profile_of("llama")[1]
    model = random_model("llama")
    model.set_attn_implementation("temperature_for_tests")
    own = {"past_key_values": SpectralCache(model, None if tier == "exact" else profile, tier=tier, background=False)}
    with torch.no_grad():
        model(ids(400), **own, logits_to_keep=1, sharper=3.0)
        dense = DynamicCache(config=model.config)
        for layer in range(len(own["past_key_values"].layers)):
            dense.update(*own["past_key_values"].view(layer, 0).dense(), layer)
        expected = model(ids(1, 1), past_key_values=dense, sharper=3.0).logits
        found = model(ids(1, 1), **own, sharper=3.0).logits
        plain = SpectralCache(model)
        assert torch.equal(
            model(ids(50), past_key_values=plain, sharper=3.0).logits, model(ids(50), sharper=3.0).logits
        )
        assert not torch.allclose(model(ids(50)).logits, model(ids(50), sharper=3.0).logits, atol=1e-3)
    assert torch.allclose(found, expected, atol=1e-4)
    assert model.config._attn_implementation == "temperature_for_tests"


def test_an_option_that_is_not_known_is_read_by_the_models_own_function():
    loaded, profile = profile_of("llama")
    cache = SpectralCache(loaded.model, profile, tier="hot")
    with torch.no_grad():
        loaded.model(ids(400), past_key_values=cache, logits_to_keep=1)
        before = cache.stats().spent.in_place_reads
        loaded.model(ids(1), past_key_values=cache, something_new=torch.ones(1))
        assert cache.stats().spent.in_place_reads == before, "left to SDPA, which gets the option"
        loaded.model(ids(1), past_key_values=cache)
    assert cache.stats().spent.in_place_reads > before


def test_an_additive_mask_of_the_users_is_used():
    model = odd_model("llama")
    bias = torch.zeros(1, 1, 1, 301)
    bias[..., 50:200] = -4.0
    both = []
    with torch.no_grad():
        for cache in (SpectralCache(model), DynamicCache(config=model.config)):
            model(ids(300), past_key_values=cache, logits_to_keep=1)
            both.append(model(ids(1), past_key_values=cache, attention_mask=bias).logits)
    assert torch.allclose(*both, atol=1e-5)


@pytest.mark.parametrize("tier", ["exact", "hot", "warm", "cold"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_output_attentions_with_a_cache(architecture, tier):
    model, profile = calibrated(architecture)
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        caches = (
            SpectralCache(model, None if tier == "exact" else profile, tier=tier, background=False),
            DynamicCache(config=model.config),
        )
        both = []
        with torch.no_grad():
            for cache in caches:
                model(ids(300), past_key_values=cache, logits_to_keep=1)
                first = model(ids(30), past_key_values=cache, output_attentions=True).attentions
                both.append((*first, *model(ids(1), past_key_values=cache, output_attentions=True).attentions))
    finally:
        model.set_attn_implementation(own)
    assert [a.shape for a in both[0]] == [a.shape for a in both[1]]
    assert all(torch.allclose(a.sum(-1), torch.ones(()), atol=1e-3) for a in both[0])
    assert tier != "exact" or all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["granite_swa", "gemma2", "gpt_oss"])
def test_a_models_own_function_is_compared_with_ours(architecture, dtype):
    require_softmax(None, tapped(odd_model(architecture).to(dtype)))


def test_an_eager_function_that_does_something_else_is_refused(monkeypatch):
    """What no option tells of: sinks that an eager function takes from its module by itself, say."""
    from transformers.models.llama import modeling_llama

    def sharpened(module, query, key, value, attention_mask, scaling, **options):
        return eager_attention_forward(module, query, key, value, attention_mask, scaling=2 * scaling, **options)

    model = odd_model("llama")
    model.set_attn_implementation("eager")
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", sharpened)
    with pytest.raises(UnsupportedModelError, match="not softmax attention"):
        SpectralCache(model)


def test_calibration_refuses_options_that_it_does_not_know():
    model = odd_model("llama")
    calls = tapped(model)
    calls[0].options["indices"] = torch.zeros(3)
    with pytest.raises(UnsupportedModelError, match="'indices'"):
        attention_entropy(calls[0])
    with pytest.raises(UnsupportedModelError, match="layer 0"):
        attention_received(calls[0], 32)
    model.set_attn_implementation("temperature_for_tests")
    with pytest.raises(UnsupportedModelError, match="temperature_for_tests"):
        attention_entropy(tapped(model)[0])
