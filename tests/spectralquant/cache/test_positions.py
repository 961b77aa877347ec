"""Keys come back as the model rotated them: dynamic frequencies, several axes, positions of one's own."""

import copy
import functools
import warnings

import pytest
import torch
from conftest import SMALL_CALIBRATION, random_model, small_tokenizer
from transformers import AutoConfig, DynamicCache, Qwen2VLForConditionalGeneration

from spectralquant import SpectralCache, pack_prompt, unpack_cache
from spectralquant.cache.tokens.positions import TokenPositions
from spectralquant.calibrating.api import calibrate_model
from spectralquant.errors import InputError, UnsupportedModelError
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

FINE = 0.0625
HALF = 8
ONE_PASS, PASSES = (1300,), (400, 300, 512, 88)


def vision_model():
    """A Qwen2-VL whose text decoder numbers text, height and width apart."""
    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    eye = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 14}
    config = AutoConfig.for_model("qwen2_vl", text_config=text, vision_config=eye)
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    return model


@functools.cache
def model_of(kind: str):
    if kind == "vision":
        return vision_model()
    if kind == "dynamic":
        rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
        return random_model(max_position_embeddings=512, rope_parameters=rope)
    if kind == "longrope":
        rope = {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1 + 0.05 * i for i in range(HALF)],
            "long_factor": [1.5 + i for i in range(HALF)],
            "original_max_position_embeddings": 512,
            "factor": 8.0,
        }
        return random_model(
            "phi3", partial_rotary_factor=1.0, original_max_position_embeddings=512, rope_parameters=rope
        )
    return random_model(kind, **({"eos_token_id": 1} if kind == "cohere" else {}))


@functools.cache
def calibrated(kind: str):
    model = model_of(kind)
    loaded = LoadedModel(kind, model, small_tokenizer(), probe_geometry(model))
    return loaded, calibrate_model(loaded, text(), SMALL_CALIBRATION)


@functools.cache
def text():
    return tokenize(small_tokenizer(), load_text("builtin:pydoc"), 10_000)


def read(model, cache, parts, ids=None, positions=None):
    ids = text().ids[: sum(parts)][None] if ids is None else ids
    at = 0
    with torch.no_grad():
        for count in parts:
            given = {} if positions is None else {"position_ids": positions[..., at : at + count]}
            seen = torch.ones(len(ids), at + count)  # without it, jumps would be taken for packed sequences
            model(ids[:, at : at + count], attention_mask=seen, past_key_values=cache, **given)
            at += count
    return cache


def error(a, b):
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def same(cache, truth, tier="cold"):
    """A fine cold tier holds all layers to 5 %; the warm tier is judged where random weights leave it some redundancy."""
    limit = 0.05 if tier == "cold" else 0.2
    for layer in range(len(truth.layers) if tier == "cold" else 1):
        keys, values = (
            cache.view(layer).dense()
            if isinstance(cache, SpectralCache)
            else (
                cache.layers[layer].keys,
                cache.layers[layer].values,
            )
        )
        for row in range(len(keys)):
            assert error(keys[row], truth.layers[layer].keys[row]) < limit
            assert error(values[row], truth.layers[layer].values[row]) < limit


@pytest.mark.parametrize("parts", [ONE_PASS, PASSES], ids=["one pass", "several passes"])
@pytest.mark.parametrize("kind", ["longrope", "dynamic", "cohere", "vision"])
def test_a_fine_cold_cache_holds_the_exact_keys_and_so_do_its_copies(kind, parts, tmp_path):
    loaded, profile = calibrated(kind)
    truth = read(loaded.model, DynamicCache(), parts)
    cache = read(loaded.model, SpectralCache(loaded.model, profile, tier="cold", step_scale=FINE), parts)
    assert cache.coded_tokens > 1000
    same(cache, truth)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        packets = cache.pack(exact="float32")
    several = kind in ("longrope", "dynamic") and parts == PASSES
    assert any("stay exact in the packet" in str(w.message) for w in said) == several
    same(unpack_cache(loaded.model, profile, packets[0]), truth)
    same(SpectralCache.unpack(loaded.model, profile, packets, step_scale=FINE), truth)
    cache.save(tmp_path / "cache")
    same(SpectralCache.load(tmp_path / "cache", loaded.model, profile), truth)
    cache.crop(-400)
    for layer in truth.layers:
        layer.keys, layer.values = layer.keys[:, :, :-400], layer.values[:, :, :-400]
    same(copy.deepcopy(cache), truth)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_decoding_past_the_original_length_keeps_older_keys(kind):
    loaded, profile = calibrated(kind)
    parts = (500,) + (1,) * 40
    truth = read(loaded.model, DynamicCache(), parts)
    for tier in ("cold", "warm"):
        options = {"step_scale": FINE} if tier == "cold" else {}
        cache = read(loaded.model, SpectralCache(loaded.model, profile, tier=tier, background=False, **options), parts)
        assert cache.coded_tokens
        same(cache, truth, tier)
    held = cache.state.positions.tensors()
    assert held["rotary_which"].unique().tolist() == list(range(2 if kind == "longrope" else 29))
    assert cache.stats().resident_bytes >= sum(t.untyped_storage().nbytes() for t in held.values())


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_prompt_packs_alike_whatever_the_model_has_read_before(kind):
    loaded, profile = calibrated(kind)
    ids = text().ids[:700][None]
    first = pack_prompt(loaded.model, profile, ids, step_scale=FINE)
    read(loaded.model, DynamicCache(), (1500,))
    again = pack_prompt(loaded.model, profile, ids, step_scale=FINE)
    assert bytes(first[0].data) == bytes(again[0].data)
    read(loaded.model, DynamicCache(), (10,))
    truth = read(loaded.model, DynamicCache(), (700,))
    same(unpack_cache(loaded.model, profile, again[0]), truth)


def test_positions_of_several_axes_are_kept_apart_and_not_packed():
    loaded, profile = calibrated("vision")
    index = torch.arange(700)
    image = (index >= 100) & (index < 356)
    height = torch.where(image, 100 + (index - 100) // 16, index - 200 * (index >= 356))
    width = torch.where(image, 100 + (index - 100) % 16, index - 200 * (index >= 356))
    positions = torch.stack([torch.where(image, 100, index - 200 * (index >= 356)), height, width])[:, None]
    truth = read(loaded.model, DynamicCache(), (700,), positions=positions)
    plain = read(loaded.model, DynamicCache(), (700,))
    assert error(truth.layers[1].keys, plain.layers[1].keys) > 0.1
    for parts in ((700,), (300, 400)):
        cache = SpectralCache(loaded.model, profile, tier="cold", step_scale=FINE)
        same(read(loaded.model, cache, parts, positions=positions), truth)
        with pytest.raises(InputError, match="positions of its own"):
            cache.pack()


@pytest.mark.parametrize("tier", ["cold", "warm"])
def test_rows_that_start_alike_and_go_on_apart(tier):
    loaded, profile = calibrated("cohere")
    ids = text().ids[:1400].view(2, 700)
    index = torch.arange(700)
    positions = torch.stack([index, index + 900 * (index > 200)])
    truth = read(loaded.model, DynamicCache(), (700,), ids, positions)
    options = {"step_scale": FINE} if tier == "cold" else {}
    cache = SpectralCache(loaded.model, profile, tier=tier, **options)
    same(read(loaded.model, cache, (700,), ids, positions), truth, tier)
    cache.reorder_cache(torch.tensor([1, 0]))
    for layer in truth.layers:
        layer.keys, layer.values = layer.keys.flip(0), layer.values.flip(0)
    same(cache, truth, tier)


def test_positions_that_are_not_those_of_the_new_tokens_are_refused():
    positions = TokenPositions()
    with pytest.raises(UnsupportedModelError, match="not known where these stand"):
        positions.append(10, 2, 1, torch.arange(12)[None], None)
    positions.append(0, 4, 2, torch.arange(4)[None], None)
    assert positions.ids is None and positions.numbered
    positions.append(4, 2, 2, torch.tensor([[4, 5], [9, 10]]), None)
    assert positions.ids.tolist() == [[[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 9, 10]]] and not positions.numbered
    positions.append(6, 1, 2, torch.tensor([[[6], [11]], [[7], [12]]]), None)
    assert positions.ids.shape == (2, 2, 7) and positions.ids[:, 1, -1].tolist() == [11, 12]
    positions.append(7, 1, 2, None, None)
    assert positions.ids[:, :, -1].tolist() == [[7, 7], [7, 7]]
