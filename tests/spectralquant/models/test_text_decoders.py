"""Wrappers for images and text: their text decoder is calibrated, read and packed as if it stood alone."""

import functools
from dataclasses import replace

import pytest
import torch
import transformers
from conftest import SMALL, SMALL_CALIBRATION, small_tokenizer
from transformers import AutoConfig, DynamicCache

from spectralquant import SpectralCache, pack_prompt, unpack_cache
from spectralquant.cache.generation import GenerationOptions, generate_text
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.first_pass import window_offset
from spectralquant.errors import InputError, NotCompressedWarning
from spectralquant.hooks.decoder import attention_modules, longest_context
from spectralquant.models.load import LoadedModel, load_model
from spectralquant.models.probe import probe_geometry
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

TEXT = {**SMALL, "head_dim": 16, "num_hidden_layers": 2}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
EYE = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_EYE = {"depth": 1, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "out_hidden_size": 64}
WRAPPERS = {
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {
                **TEXT,
                "sliding_window": 64,
                "layer_types": ["sliding_attention", "full_attention"],
                "query_pre_attn_scalar": 16,
            },
            "vision_config": EYE,
            "mm_tokens_per_image": 4,
            "image_token_index": 500,
            "boi_token_index": 501,
            "eoi_token_index": 502,
        },
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {
            "text_config": {"model_type": "mistral", **TEXT},
            "vision_config": {"model_type": "pixtral", **EYE},
            "image_token_index": 500,
        },
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **EYE},
            "image_token_index": 500,
        },
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {**TEXT, **MROPE},
            "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 14},
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {**TEXT, **MROPE},
            "vision_config": {**QWEN_EYE, "intermediate_size": 32, "fullatt_block_indexes": [0]},
        },
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {
                **TEXT,
                "rope_parameters": {**MROPE["rope_parameters"], "mrope_interleaved": True},
            },
            "vision_config": {**QWEN_EYE, "intermediate_size": 32, "deepstack_visual_indexes": [0]},
        },
    ),
}


@functools.cache
def wrapper(kind: str) -> LoadedModel:
    name, parts = WRAPPERS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, name)(AutoConfig.for_model(kind, **parts)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    return LoadedModel(kind, model, small_tokenizer(), probe_geometry(model))


def text():
    return tokenize(small_tokenizer(), load_text("builtin:pydoc"), 10_000)


@functools.cache
def profile(kind: str):
    return calibrate_model(wrapper(kind), text(), SMALL_CALIBRATION)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_folder_loads_with_the_text_decoder_s_geometry(kind, tmp_path):
    loaded = wrapper(kind)
    loaded.model.save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    again = load_model(str(tmp_path), device="cpu")
    assert type(again.model) is type(loaded.model)
    assert again.geometry == loaded.geometry and again.geometry.layers == 2 and all(again.geometry.rotary)
    assert len(attention_modules(again.model)) == 2 and longest_context(again.model) == 4096


@pytest.mark.parametrize("kind", WRAPPERS)
def test_every_tier_reads_the_text_decoder(kind):
    loaded = wrapper(kind)
    model, own = loaded.model, profile(kind)
    ids = text().ids[:700][None].clamp(max=499)
    exact = DynamicCache()
    with torch.no_grad():
        expected = model(ids, past_key_values=exact).logits
    for tier, limit in (("exact", 1e-4), ("cold", 0.02), ("warm", 0.8), ("hot", 0.8)):
        options = {"step_scale": 0.0625} if tier == "cold" else {}
        cache = SpectralCache(model, own, tier=tier, **options)
        with torch.no_grad():
            got = model(ids, past_key_values=cache).logits
        if tier != "hot":
            assert (got - expected).norm() < 1e-3 * expected.norm()  # one pass reads exact tokens
        assert cache.coded_tokens == 508
        keys = cache.view(1).dense()[0]
        truth = exact.layers[1].keys
        assert (keys[:, :, -300:] - truth[:, :, -300:]).norm() < limit * truth[:, :, -300:].norm()
    packet = pack_prompt(model, own, ids, step_scale=0.05)[0]
    back = unpack_cache(model, own, packet)
    assert (back.layers[1].keys - exact.layers[1].keys).norm() < 0.02 * exact.layers[1].keys.norm()


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl"])
def test_generating_knows_the_text_decoder_s_positions(kind):
    loaded = wrapper(kind)
    made = generate_text(
        loaded, profile(kind), "A dictionary maps keys to values. " * 40, GenerationOptions(new_tokens=4)
    )
    assert made.new_tokens <= 4 and made.stats.payload_ratio > 1
    with pytest.raises(InputError, match="4,096 positions"):
        generate_text(loaded, profile(kind), "a", GenerationOptions(new_tokens=5000))


IMAGE, BEGIN, END = 500, 501, 502


def with_image(kind: str) -> dict[str, torch.Tensor]:
    """600 tokens of text with an image after the first 200."""
    words, noise = text().ids[:600].clamp(max=490), torch.Generator().manual_seed(1)
    config = wrapper(kind).model.config
    if kind == "llava":
        ids = torch.cat([words[:200], torch.full((4,), IMAGE), words[200:]])[None]
        return {"input_ids": ids, "pixel_values": torch.randn(1, 3, 28, 28, generator=noise)}
    config.image_token_id, config.vision_start_token_id, config.vision_end_token_id = IMAGE, BEGIN, END
    eye, side = config.vision_config, 8
    patches = torch.randn(side * side, 3 * eye.temporal_patch_size * eye.patch_size**2, generator=noise)
    image = torch.tensor([BEGIN, *[IMAGE] * (side * side // 4), END])
    ids = torch.cat([words[:200], image, words[200:]])[None]
    return {
        "input_ids": ids,
        "pixel_values": patches,
        "image_grid_thw": torch.tensor([[1, side, side]]),
        "mm_token_type_ids": (ids == IMAGE).int(),
    }


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_images_are_read_from_the_cache_where_they_stand(kind):
    """No token id predicts an image, so its blocks stay exact, which is said; those of the text around it are coded."""
    loaded, given = wrapper(kind), with_image(kind)
    own = calibrate_model(loaded, text(), replace(SMALL_CALIBRATION, tiers=("cold",)))
    greedy = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    greedy["attention_mask"] = torch.ones_like(given["input_ids"])
    exact = DynamicCache(config=loaded.model.config)
    expected = loaded.model.generate(**given, past_key_values=exact, **greedy)
    lossless = SpectralCache(loaded.model, own, tier="exact")
    assert torch.equal(loaded.model.generate(**given, past_key_values=lossless, **greedy), expected)
    cold = SpectralCache(loaded.model, own, tier="cold", step_scale=0.0625)
    with torch.no_grad(), pytest.warns(NotCompressedWarning, match="not seen .images"):
        loaded.model(**given, past_key_values=cold, logits_to_keep=1)
    total = given["input_ids"].shape[1]
    assert [block.tier for block in cold.groups[0].tokens.sequences[0]] == ["cold", "exact", "cold"]
    image = (given["input_ids"][0] == IMAGE).nonzero()[:, 0]
    assert (cold.state.ids[0, image] == -1).all() and (cold.state.ids >= 0).sum() == total - len(image)
    for layer in (0, 1):
        keys, truth = cold.view(layer).dense()[0], exact.layers[layer].keys[:, :, :total]
        assert (keys - truth).norm() < 0.05 * truth.norm()
        assert torch.equal(keys[:, :, image], truth[:, :, image])
    if kind != "llava":
        axes = cold.state.positions.ids[:, 0, image]
        assert axes[1].view(4, 4).T.equal(axes[2].view(4, 4)) and axes[0].unique().numel() == 1
        with pytest.raises(InputError, match="positions of its own"):
            cold.pack()


@pytest.mark.parametrize("kind", ["mistral3", "qwen3_vl"])
def test_calibration_windows_stand_all_over_the_context(kind):
    assert len({window_offset(wrapper(kind).model, SMALL_CALIBRATION, i) for i in range(8)}) == 8
