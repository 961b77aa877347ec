"""Every way people call generate, on every architecture: a lossless SpectralCache changes no token."""

import copy
import pickle

import pytest
import torch
from conftest import ARCHITECTURES, profile_of, random_model
from transformers import DynamicCache

from spectralquant import SpectralCache

PROMPT = 300


def prompt(rows: int = 1, tokens: int = PROMPT, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 500, (rows, tokens), generator=generator)


def run(model, cache, ids, mask=None, **options):
    torch.manual_seed(7)
    mask = torch.ones_like(ids) if mask is None else mask
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    return model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **settings)


def padded(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    ids = prompt(rows)
    mask = torch.ones_like(ids)
    mask[0, :37] = 0
    ids[0, :37] = 0
    return ids, mask


MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_k": 20},
    "beam 3": {"num_beams": 3},
    "three sequences": {"do_sample": True, "num_return_sequences": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 4},
    "chunked prefill": {"prefill_chunk_size": 97},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lossless_equals_uncompressed(architecture, mode):
    model = profile_of(architecture)[0].model
    ids = prompt()
    cache = SpectralCache(model)
    expected = run(model, DynamicCache(config=model.config), ids, **MODES[mode])
    assert torch.equal(run(model, cache, ids, **MODES[mode]), expected)
    assert not cache.groups[0].tokens.coded or cache.stats().tiers["exact"].tokens >= 124


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_left_padding(architecture):
    model = profile_of(architecture)[0].model
    ids, mask = padded()
    cache = SpectralCache(model)
    assert torch.equal(run(model, cache, ids, mask), run(model, DynamicCache(config=model.config), ids, mask))


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral"])
def test_short_prompts(architecture, tokens):
    model = profile_of(architecture)[0].model
    ids = prompt(tokens=tokens)
    options = {"max_new_tokens": 270}
    cache = SpectralCache(model)
    expected = run(model, DynamicCache(config=model.config), ids, **options)
    assert torch.equal(run(model, cache, ids, **options), expected)
    coded = cache.groups[0].tokens.coded
    assert bool(cache.stats().tiers) == coded, "decoding compresses too, not only prefill"


@pytest.mark.parametrize("tier", ["exact", "hot"])
def test_assisted_decoding(tier):
    loaded, profile = profile_of("llama")
    torch.manual_seed(3)
    assistant = random_model("llama", num_hidden_layers=1)
    ids = prompt()
    cache = SpectralCache(loaded.model, profile, tier=tier)
    plain = run(loaded.model, SpectralCache(loaded.model, profile, tier=tier), ids)
    assisted = run(loaded.model, cache, ids, assistant_model=assistant)
    assert torch.equal(assisted, plain)


def test_conversation_goes_on():
    model = profile_of("llama")[0].model
    mine, theirs = SpectralCache(model), DynamicCache(config=model.config)
    text_mine = text_theirs = prompt()
    for turn in range(3):
        text_mine, text_theirs = run(model, mine, text_mine), run(model, theirs, text_theirs)
        assert torch.equal(text_mine, text_theirs)
        more = prompt(tokens=60, seed=turn + 1)
        text_mine, text_theirs = torch.cat([text_mine, more], 1), torch.cat([text_theirs, more], 1)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("tier", ["exact", "hot", "warm", "cold"])
def test_modes_of_autograd_mix(tier, context):
    loaded, profile = profile_of("llama")
    cache = SpectralCache(loaded.model, profile, tier=tier)
    with context():
        loaded.model(input_ids=prompt(), past_key_values=cache)
    with torch.no_grad():
        loaded.model(input_ids=prompt(tokens=200), past_key_values=cache)
    assert cache.get_seq_length() == PROMPT + 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tier", ["exact", "hot", "warm", "cold"])
def test_dtypes(tier, dtype):
    loaded, profile = profile_of("llama")
    model = copy.deepcopy(loaded.model).to(dtype)
    if dtype == torch.float16:
        profile = copy.deepcopy(profile)
        from spectralquant.models.identity import weights_sha256

        profile.sidecar.model.weights_sha256_float16 = weights_sha256(model, torch.float16)
    cache = SpectralCache(model, profile, tier=tier)
    out = run(model, cache, prompt())
    expected = run(model, DynamicCache(config=model.config), prompt())
    assert out.shape == expected.shape
    if tier == "exact":
        assert torch.equal(out, expected)
    assert cache.view(0).dense()[0].dtype == dtype


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("tier", ["hot", "warm", "cold"])
def test_the_models_own_attention_reads_the_same_cache(tier, implementation):
    loaded, profile = profile_of("llama")
    model = copy.deepcopy(loaded.model)
    spectral = SpectralCache(model, profile, tier=tier, background=False)
    with torch.no_grad():
        model(input_ids=prompt(), past_key_values=spectral)
        other = copy.deepcopy(spectral)
        token = torch.tensor([[7]])
        expected = model(input_ids=token, past_key_values=spectral).logits
        model.set_attn_implementation(implementation)
        other.options["attention"] = "model"
        found = model(input_ids=token, past_key_values=other).logits
    assert torch.allclose(found, expected, atol=1e-3 * expected.abs().max())


@pytest.mark.parametrize("tier", ["exact", "hot", "warm", "cold"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_copies_go_on_alike(tier, way, tmp_path):
    loaded, profile = profile_of("llama")
    model = loaded.model
    cache = SpectralCache(model, None if tier == "exact" else profile, tier=tier)
    first = run(model, cache, prompt(), max_new_tokens=4)
    if way == "deepcopy":
        other = copy.deepcopy(cache)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(cache))
    else:
        cache.save(tmp_path / "cache.safetensors")
        other = SpectralCache.load(tmp_path / "cache.safetensors", model, cache.profile)
    more = torch.cat([first, prompt(tokens=200, seed=9)], 1)
    assert torch.equal(run(model, other, more), run(model, cache, more))
    assert other.stats().resident_bytes == cache.stats().resident_bytes


def test_beams_share_pages():
    loaded, profile = profile_of("llama")
    cache = SpectralCache(loaded.model, profile, tier="hot")
    with torch.no_grad():
        loaded.model(input_ids=prompt(), past_key_values=cache)
    before = cache.stats().tiers["hot"].bytes
    cache.batch_repeat_interleave(3)
    assert cache.stats().tiers["hot"].bytes == before
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert cache.batch_size == 3


@pytest.mark.parametrize("tier", ["hot", "warm", "cold"])
def test_compression_really_happens(tier):
    loaded, profile = profile_of("llama")
    cache = SpectralCache(loaded.model, profile, tier=tier)
    run(loaded.model, cache, prompt(tokens=1500))
    stats = cache.stats()
    assert stats.payload_ratio > {"hot": 3.5, "warm": 7.0, "cold": 5.0}[tier]
    assert stats.resident_bytes < stats.fp16_bytes
    assert stats.tiers[tier].tokens + stats.exact_tokens == stats.tokens


def test_drop_in_migration():
    """The five lines of the README."""
    loaded, profile = profile_of("llama")
    model, inputs = loaded.model, {"input_ids": prompt(), "attention_mask": torch.ones(1, PROMPT, dtype=torch.int64)}
    import spectralquant as sq

    cache = sq.SpectralCache(model, profile, tier="hot")
    output = model.generate(**inputs, past_key_values=cache, max_new_tokens=8)
    assert output.shape == (1, PROMPT + 8)
    assert cache.stats().payload_ratio > 3.5


@pytest.mark.model
@pytest.mark.parametrize("mode", ["greedy", "beam 3", "prompt lookup", "left padding"])
@pytest.mark.slow
def test_the_built_in_model(builtin, mode):
    """The same on real weights: a prompt of 300 tokens, of which 124 are in a coded block when decoding begins."""
    model = builtin.model
    ids, mask = padded() if mode == "left padding" else (prompt(), None)
    options = {**MODES.get(mode, {}), "max_new_tokens": 6}
    expected = run(model, DynamicCache(config=model.config), ids, mask, **options)
    cache = SpectralCache(model)
    assert torch.equal(run(model, cache, ids, mask, **options), expected)
    assert cache.stats().tiers["exact"].tokens >= 124


@pytest.mark.parametrize("tier", ["exact", "warm"])
def test_blocks_are_reconstructed_once_a_token(tier, monkeypatch):
    loaded, profile = profile_of("llama")
    cache = SpectralCache(loaded.model, profile, tier=tier)
    with torch.no_grad():
        loaded.model(input_ids=prompt(), past_key_values=cache)
        reads = []
        dense = cache.tiers[tier].dense
        monkeypatch.setattr(
            cache.tiers[tier], "dense", lambda layer, *rest: (reads.append(layer), dense(layer, *rest))[1]
        )
        loaded.model(input_ids=prompt(tokens=1), past_key_values=cache)
    assert reads == [0, 1, 2]
