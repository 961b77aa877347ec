"""Sliding and hybrid layers: nothing changes in what is generated, and what a layer can never read again is not held."""

import copy
import functools
import pickle

import pytest
import torch
from conftest import random_model
from transformers import DynamicCache

from spectralquant import SpectralCache
from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK

GEMMA3N = {
    "head_dim": 16,
    "sliding_window": 64,
    "num_kv_shared_layers": 2,
    "num_hidden_layers": 6,
    "laurel_rank": 8,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 512,
    "activation_sparsity_pattern": None,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}
HYBRID = ["sliding_attention"] * 2 + ["full_attention"]
MODELS = {
    "mistral, window 64": ("mistral", {"sliding_window": 64}),
    "mistral, window 300": ("mistral", {"sliding_window": 300}),
    "qwen2, from layer 1": ("qwen2", {"use_sliding_window": True, "sliding_window": 300, "max_window_layers": 1}),
    "gemma2, window 300": ("gemma2", {"sliding_window": 300}),
    "gemma3, window 64": ("gemma3_text", {"sliding_window": 64, "layer_types": HYBRID}),
    "gemma3, window 500": ("gemma3_text", {"sliding_window": 500, "layer_types": HYBRID}),
    "gemma3n, shared keys": ("gemma3n_text", GEMMA3N),
}
MODES = {
    "greedy": {},
    "beam 3": {"num_beams": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 4},
    "chunked prefill": {"prefill_chunk_size": 97},
}


@functools.cache
def model_of(name: str):
    """Weights of its own, so that a pickled cache finds this model again and no other test's."""
    architecture, changes = MODELS[name]
    model = random_model(architecture, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    return model


def prompt(tokens: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 500, (rows, tokens), generator=generator)


def run(model, cache, ids, mask=None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    settings = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    return model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **settings)


def own(model) -> DynamicCache:
    return DynamicCache(config=model.config)


def require_minimal(cache: SpectralCache) -> None:
    """Nothing beyond a layer's window is held: to the token, or where blocks are coded to the block."""
    total = cache.get_seq_length()
    for group in cache.state.groups:
        oldest = group.kind.first_read(total)
        assert group.first <= oldest < group.first + (BLOCK if group.coded else 1)
        for layer in group.layers:
            assert group.first + layer.sink_keys.shape[2] + group.coded_tokens + layer.keys.shape[2] == total


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_generates_what_the_models_own_cache_does(name, mode):
    model, ids = model_of(name), prompt(1300)
    cache = SpectralCache(model)
    expected = run(model, own(model), ids, **MODES[mode])
    assert torch.equal(run(model, cache, ids, **MODES[mode]), expected)
    require_minimal(cache)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_decoding_token_by_token_through_several_windows(name):
    model = model_of(name)
    window = model.config.sliding_window
    ids, options = prompt(5 if window == 64 else 200), {"max_new_tokens": {64: 300, 300: 440, 500: 500}[window]}
    cache = SpectralCache(model)
    assert torch.equal(run(model, cache, ids, **options), run(model, own(model), ids, **options))
    require_minimal(cache)


@pytest.mark.parametrize("name", MODELS)
def test_left_padding(name):
    model, ids = model_of(name), prompt(700, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :411] = 0
    cache = SpectralCache(model)
    assert torch.equal(run(model, cache, ids, mask), run(model, own(model), ids, mask))


@pytest.mark.parametrize("name", MODELS)
def test_assisted_decoding_takes_tokens_back(name):
    model, ids = model_of(name), prompt(900)
    torch.manual_seed(3)
    assistant = random_model("llama", num_hidden_layers=1)
    cache = SpectralCache(model)
    assert torch.equal(run(model, cache, ids, assistant_model=assistant), run(model, own(model), ids))
    require_minimal(cache)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_the_models_own_attention(name, implementation):
    model = copy.deepcopy(model_of(name))
    if implementation == "sdpa" and not model._supports_sdpa:
        pytest.skip("transformers has no sdpa for this architecture")
    model.set_attn_implementation(implementation)
    ids = prompt(900)
    cache = SpectralCache(model, attention="model")
    assert torch.equal(run(model, cache, ids), run(model, own(model), ids))


@pytest.mark.parametrize("name", MODELS)
def test_logits_after_a_conversation(name):
    """Turns of every length, long ones that run over a whole window in one pass included."""
    model = model_of(name)
    mine, theirs = SpectralCache(model), own(model)
    with torch.no_grad():
        for seed, tokens in enumerate((3, 400, 1, 130, 1, 1, 700, 64, 2)):
            ids = prompt(tokens, seed=seed)
            a, b = (model(input_ids=ids, past_key_values=cache).logits for cache in (mine, theirs))
            assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))
            require_minimal(mine)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save", "pack"])
def test_copies_go_on_alike(name, way, tmp_path):
    model = model_of(name)
    cache = SpectralCache(model)
    first = run(model, cache, prompt(800))
    if way == "deepcopy":
        other = copy.deepcopy(cache)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(cache))
    elif way == "save":
        cache.save(tmp_path / "cache.safetensors")
        other = SpectralCache.load(tmp_path / "cache.safetensors", model)
    else:
        packet = cache.pack()[0]
        assert packet.nbytes < 1.1 * sum(layer_bytes(cache)) + 4096
        other = SpectralCache.unpack(model, None, packet)
    more = torch.cat([first, prompt(200, seed=9)], 1)
    assert torch.equal(run(model, other, more), run(model, cache, more))
    require_minimal(other)


def layer_bytes(cache: SpectralCache) -> list[int]:
    return [sum(x.numel() * x.element_size() for x in cache.view(i, 0).dense()) for i in range(len(cache.layers))]


def test_dense_tokens_stand_at_their_places_and_those_let_go_are_zero():
    model = model_of("gemma3, window 64")
    cache = SpectralCache(model)
    with torch.no_grad():
        model(input_ids=prompt(500), past_key_values=cache)
    for index, layer in enumerate(cache.layers):
        for whole, read in zip(cache.view(index).dense(), cache.view(index, 0).dense(), strict=True):
            held = read.shape[2]
            assert whole.shape[2] == 500 and held == (63 if layer.is_sliding else 500)
            assert torch.equal(whole[:, :, 500 - held :], read) and not whole[:, :, : 500 - held].any()


def test_crop_goes_back_as_far_as_tokens_are_held():
    model = model_of("gemma3, window 64")
    cache = SpectralCache(model)
    with torch.no_grad():
        model(input_ids=prompt(500), past_key_values=cache)
        before = copy.deepcopy(cache)
        with pytest.raises(InputError, match="activate_past_recording"):
            cache.crop(-10)
        assert cache.get_seq_length() == 500, "a refused crop changes nothing"
        cache.activate_past_recording()
        model(input_ids=prompt(300, seed=1), past_key_values=cache)
        cache.crop(-300)
        require_minimal(cache)
        token = prompt(1, seed=2)
        a, b = (model(input_ids=token, past_key_values=c).logits for c in (cache, before))
    assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))
    cache.crop(-501)
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("name", ["mistral, window 300", "gemma3, window 64"])
def test_crop_within_the_first_window_needs_no_recording(name):
    model = model_of(name)
    cache, other = SpectralCache(model), SpectralCache(model)
    ids = prompt(60)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache)
        cache.crop(-30)
        model(input_ids=ids[:, :30], past_key_values=other)
        token = prompt(1, seed=2)
        a, b = (model(input_ids=token, past_key_values=c).logits for c in (cache, other))
    assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_bytes_are_counted_against_the_models_own_cache(name):
    """Measured: transformers' cache decodes a few tokens, so that its prefill's tensors are gone."""
    model = model_of(name)
    mine, theirs = SpectralCache(model), own(model)
    with torch.no_grad():
        for cache in (mine, theirs):
            model(input_ids=prompt(1300), past_key_values=cache)
            for _ in range(4):
                model(input_ids=prompt(1), past_key_values=cache)
    keys = [layer.keys for layer in theirs.layers if layer.keys is not None]
    float16 = sum(2 * 2 * k.numel() for k in keys)
    stored = sum(k.untyped_storage().nbytes() for k in keys)  # float32: as much as keys and values in float16
    assert mine.stats().fp16_bytes == float16 <= stored <= 1.02 * float16
    held = mine.stats().exact_bytes + sum(g.coded_bytes for g in mine.stats().groups)
    block = sum(2 * 4 * BLOCK * 32 * g.layers for g in mine.stats().groups if g.coded)
    assert held <= 2 * stored + block, "float32, and up to a block more where blocks are coded"
