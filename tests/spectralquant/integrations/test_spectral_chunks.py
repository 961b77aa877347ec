"""The serving mode: chunks at known positions to bytes and back, exact RoPE, profiles that are for one thing."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from conftest import random_model, small_tokenizer
from transformers import DynamicCache

from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.targets import parse_target
from spectralquant.codec.block_rotary import rotate_keys, unrotate_keys
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.serving.codec import KVChunk, ServingCodec
from spectralquant.errors import InputError, PacketError, ProfileError, UnsupportedModelError
from spectralquant.evaluation.restored import measure_restored
from spectralquant.geometry import SINKS
from spectralquant.hooks.rotary_frequencies import model_frequencies
from spectralquant.hooks.rotary_tables import Places, RotaryTables
from spectralquant.integrations.chunk import stacked_layers
from spectralquant.integrations.chunks import Chunk, ChunkCodec, ChunkShape, open_codec
from spectralquant.integrations.spectral_chunks import SpectralChunks
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.profile.model import CalibrationProfile
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

SERVING = CalibrationSettings(
    steps=8,
    window=384,
    predict="none",
    purpose="serving",
    held_out_windows=1,
    held_out_window=512,
    targets={"cold": parse_target("ratio=8")},
)
ROPES = {
    "plain": ("llama", {}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 1024,
            }
        },
    ),
    "llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
                "rope_theta": 5e5,
            }
        },
    ),
    "two thetas": ("gemma3_text", {}),
    "neighbours": ("cohere", {}),
    "partial": ("phi3", {}),
}


@functools.cache
def served(architecture: str = "llama") -> tuple[LoadedModel, CalibrationProfile]:
    model, tokenizer = random_model(architecture), small_tokenizer()
    loaded = LoadedModel(f"small-{architecture}", model, tokenizer, probe_geometry(model))
    text = tokenize(tokenizer, load_text("builtin:pydoc"), 10_000)
    return loaded, calibrate_model(loaded, text, SERVING)


@functools.cache
def computed(architecture: str = "llama", tokens: int = 640) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[L, Hk, T, D]` of a text."""
    loaded, _ = served(architecture)
    ids = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 40_000).windows(tokens, 1, 20_000)[0]
    cache = DynamicCache()
    with torch.no_grad():
        loaded.model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    return tuple(torch.stack([getattr(layer, kind)[0] for layer in cache.layers]) for kind in ("keys", "values"))


def chunks_of(keys, values, size, dtype=torch.float32):
    parts = range(0, keys.shape[2], size)
    return [Chunk(at, *([x[:, at : at + size].to(dtype) for x in both] for both in (keys, values))) for at in parts]


def error(a, b):
    a, b = a.float(), b.float()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", ROPES)
def test_frequencies_turn_keys_as_the_model_does_anywhere(name):
    model = random_model(*ROPES[name][:1], **ROPES[name][1])
    geometry = probe_geometry(model)
    rotary, places = model_frequencies(model, geometry), torch.tensor([0, 1, 77, 1023, 4000])
    wanted = RotaryTables(model, geometry)(Places(places[None]))
    keys = torch.randn(len(places), geometry.layers, geometry.kv_heads, geometry.head_dim)
    assert torch.allclose(rotate_keys(rotary(places), keys), rotate_keys(wanted, keys), atol=2e-3)
    assert error(unrotate_keys(rotary(places), rotate_keys(rotary(places), keys)), keys) < 1e-6
    coarse = rotary(places, torch.bfloat16)  # tables rounded as an engine's: undoing still is the exact inverse
    assert error(unrotate_keys(coarse, rotate_keys(coarse, keys)), keys) < 1e-6


def test_frequencies_that_change_with_the_text_are_refused():
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 1024}
    model = random_model(
        "phi3", partial_rotary_factor=1.0, rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors}
    )
    with pytest.raises(UnsupportedModelError, match="lossless"):
        model_frequencies(model, probe_geometry(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [128, 256, 208])
def test_chunks_come_back(dtype, size):
    codec = SpectralChunks(served()[1])
    assert isinstance(codec, ChunkCodec)
    keys, values = computed()
    chunks = chunks_of(keys, values, size, dtype)
    codec.require(chunks[0].shape)
    packets = codec.encode(chunks)
    back = codec.decode(packets, chunks[0].shape)
    for a, b in zip(back, chunks, strict=True):
        assert (a.start, a.shape, a.tokens) == (b.start, b.shape, b.tokens)
        for kind in ("keys", "values"):
            assert error(stacked_layers(getattr(a, kind)), stacked_layers(getattr(b, kind))) < 0.6
            for x, y in zip(getattr(a, kind), getattr(b, kind), strict=True):
                assert torch.equal(x[:, : SINKS - a.start], y[:, : SINKS - b.start]) or a.start
    plain = sum(2 * stacked_layers(c.keys).numel() * dtype.itemsize for c in chunks)
    assert plain / sum(map(len, packets)) > 2.5 * dtype.itemsize / 2
    alone = [codec.decode([p], c.shape)[0] for p, c in zip(packets, chunks, strict=True)]
    for a, b in zip(alone, back, strict=True):  # every chunk decodes by itself
        assert error(stacked_layers(a.keys), stacked_layers(b.keys)) < 1e-2


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "phi3"])
def test_restored_text_is_read_as_measured(architecture):
    loaded, profile = served(architecture)
    ids = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 40_000).windows(512, 2, 20_000)
    fine, coarse = (SpectralChunks(profile, step_scale=s) for s in (0.1, 4.0))
    a, b = measure_restored(loaded.model, ids, [fine.codec, coarse.codec], chunk=128)
    assert a.kl < b.kl and a.kl < 0.05
    assert a.payload_ratio(loaded.geometry) < b.payload_ratio(loaded.geometry)


def test_the_fused_way_codes_the_same_chunks():
    profile = served()[1]
    tier, geometry, rotary = profile.tier("cold"), profile.geometry, profile.rotary
    plain, fused = (
        ServingCodec(SpectralCodec(tier, geometry, None, step_scale=0.3, dtype=dtype), rotary)
        for dtype in (torch.float32, torch.float16)
    )
    assert fused.fused and not plain.fused
    keys, values = computed()
    chunks = [KVChunk(at, keys[:, :, at : at + 160], values[:, :, at : at + 160]) for at in (0, 320, 160)]
    packets = fused.encode(chunks)
    assert sum(map(len, packets)) == pytest.approx(sum(map(len, plain.encode(chunks))), rel=0.02)
    for dtype in (torch.float32, torch.bfloat16):
        for a, b, c in zip(fused.decode(packets, dtype), plain.decode(packets, dtype), chunks, strict=True):
            assert a.start == b.start == c.start
            assert error(a.keys, b.keys) < 2e-2 and error(a.values, b.values) < 2e-2
            assert error(a.keys, c.keys) < 0.3


def test_samples_are_coded_as_chunks_are():
    profile = served()[1]
    assert SpectralChunks(profile).codec.sample(3, 32, torch.bfloat16) == []  # nothing is compiled for these products
    codec = SpectralCodec(profile.tier("cold"), profile.geometry, None, dtype=torch.float16)
    fused = ServingCodec(codec, profile.rotary)
    chunks = fused.sample(3, 32, torch.bfloat16)
    assert [c.start for c in chunks] == [0, 32, 64] and all(c.keys.isfinite().all() for c in chunks)
    packets = fused.encode(chunks)
    assert all(len(p) < 2 * c.keys.numel() * 2 / 2 for p, c in zip(packets, chunks, strict=True))  # not held exactly
    for chunk, back in zip(chunks, fused.decode(packets, torch.bfloat16), strict=True):
        assert back.start == chunk.start and error(back.values, chunk.values) < 0.5


def test_strides_and_many_tokens():
    codec = SpectralChunks(served()[1], step_scale=0.1)
    keys, values = (torch.cat([x] * 3, dim=2)[:, :, :1400] for x in computed())
    engine = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in keys]  # tokens first, as pages hold them
    chunk = Chunk(48, engine, list(values))
    back = codec.decode(codec.encode([chunk]), chunk.shape)[0]
    assert back.tokens == 1400 and error(stacked_layers(back.values), values) < 0.1


def test_what_does_not_shrink_is_exact():
    codec = SpectralChunks(served()[1])
    shape = (3, 2, 32, 16)
    wild = torch.randn(shape) * 1e4
    wild[0, 0, 9, 3] = float("nan")
    chunk = Chunk(320, list(wild), list(torch.randn(shape)))
    back = codec.decode(codec.encode([chunk]), chunk.shape)[0]
    assert torch.equal(stacked_layers(back.keys).view(torch.int32), wild.view(torch.int32))


def test_damage_is_a_packet_error():
    codec = SpectralChunks(served()[1])
    chunk = chunks_of(*computed(), 256)[0]
    data = codec.encode([chunk])[0]
    generator = torch.Generator().manual_seed(0)
    wrong = [b"", data[:10], data[:-1], data + b"0", data[: len(data) // 2], b"x" + data[1:]]
    for at in torch.randint(0, len(data), (60,), generator=generator).tolist():
        wrong.append(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :])
    refused = 0
    for each in wrong:
        try:
            back = codec.decode([each], chunk.shape)[0]
        except PacketError:
            refused += 1
        else:
            assert back.shape == chunk.shape
    assert refused >= 6


def test_each_profile_is_for_one_thing(small, small_profile):
    with pytest.raises(ProfileError, match="--for serving"):
        SpectralChunks(small_profile)
    with pytest.raises(ProfileError, match="without --for"):
        SpectralCache(served()[0].model, served()[1])


def test_profile_and_codec_are_opened_by_path(tmp_path):
    _, profile = served()
    profile.save(tmp_path / "serving")
    codec, again = open_codec(tmp_path / "serving.json"), SpectralChunks(profile)
    assert codec.identity == again.identity != SpectralChunks(profile, step_scale=2.0).identity
    chunk = chunks_of(*computed(), 256)[1]
    assert codec.encode([chunk]) == again.encode([chunk])


def test_another_engine_is_refused():
    codec, shape = SpectralChunks(served()[1]), chunks_of(*computed(), 256)[0].shape
    with pytest.raises(InputError, match="--model"):
        codec.require(ChunkShape((2, 2), (16, 16), torch.bfloat16))
    with pytest.raises(InputError, match="kv-cache-dtype"):
        codec.require(ChunkShape(shape.kv_heads, shape.head_dim, torch.uint8))


def test_serving_settings_that_contradict_are_refused():
    with pytest.raises(InputError, match="--predict none"):
        CalibrationSettings(purpose="serving")
    with pytest.raises(InputError, match="Did you mean"):
        CalibrationSettings(purpose="servin")


def test_a_bound_is_kept_and_named():
    loaded = served()[0]
    text = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 10_000)
    profile = calibrate_model(loaded, text, replace(SERVING, targets={"cold": parse_target("error=0.05")}))
    codec, free = SpectralChunks(profile), SpectralChunks(profile, bound=None)
    assert codec.bound == 0.05 and codec.identity != free.identity
    noise = [torch.randn(2, 256, 16) for _ in range(3)]
    chunk = Chunk(512, noise, noise)
    tight, loose = (c.decode(c.encode([chunk]), chunk.shape)[0] for c in (codec, free))
    assert error(stacked_layers(tight.keys), torch.stack(noise)) < error(stacked_layers(loose.keys), torch.stack(noise))
