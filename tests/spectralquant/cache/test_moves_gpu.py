"""Caches go from a GPU to a CPU and back: packets, saved caches, copies."""

import copy
import pickle

import pytest
import torch
from gpu_for_tests import GPU, PROMPT, TIERS, distance, filled, model_on, prompt, read, steps

from spectralquant import SpectralCache, pack_prompt, unpack_cache
from spectralquant.errors import InputError

pytestmark = pytest.mark.gpu
NEXT = prompt(3, seed=5)
WAYS = {"GPU to CPU": (GPU, "cpu"), "CPU to GPU": ("cpu", GPU), "GPU to GPU": (GPU, GPU)}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def bound(dtype):
    return 0.03 if dtype == torch.float32 else 0.15


@DTYPES
@pytest.mark.parametrize("way", WAYS)
def test_a_packet_goes_on_elsewhere(way, dtype, tmp_path):
    source, target = WAYS[way]
    model, profile = model_on(source, dtype)
    cache = filled(model, profile, "cold")
    packet = cache.pack()[0]
    packet.save(tmp_path / "prompt.sqkv")
    other, _ = model_on(target, dtype)
    lazy = SpectralCache.unpack(other, profile, tmp_path / "prompt.sqkv")
    dense = unpack_cache(other, profile, packet)
    assert dense.layers[0].keys.device.type == torch.device(target).type
    expected = steps(model, cache, NEXT)
    assert distance(steps(other, lazy, NEXT), expected) < bound(dtype)
    assert distance(steps(other, dense, NEXT), expected) < bound(dtype)


@DTYPES
def test_packets_of_both_devices_have_one_size(dtype):
    there, profile = model_on(GPU, dtype)
    here, _ = model_on("cpu", dtype)
    a, b = (pack_prompt(model, profile, prompt().to(model.device))[0] for model in (there, here))
    assert [(s.start, s.tokens, s.kind) for s in a.sections] == [(s.start, s.tokens, s.kind) for s in b.sections]
    assert a.coded_bytes == pytest.approx(b.coded_bytes, rel=0.02)


@pytest.mark.parametrize("tier", ["hot", "warm"])
def test_hot_and_warm_blocks_are_packed_on_the_gpu(tier):
    model, profile = model_on(GPU, torch.bfloat16)
    again = SpectralCache.unpack(model_on("cpu")[0], profile, filled(model, profile, tier, host=tier == "warm").pack())
    assert again.get_seq_length() == PROMPT and set(again.stats().tiers) == {"cold"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tier", TIERS)
def test_a_saved_cache_goes_on_elsewhere(tier, way, tmp_path):
    source, target = WAYS[way]
    model, profile = model_on(source)
    cache = filled(model, profile, tier)
    cache.save(tmp_path / "cache.safetensors")
    other, _ = model_on(target)
    back = SpectralCache.load(tmp_path / "cache.safetensors", other, profile)
    assert [b.tier for b in back.state.sequences[0]] == [b.tier for b in cache.state.sequences[0]]
    assert distance(steps(other, back, NEXT), steps(model, cache, NEXT)) < 0.03


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("tier", TIERS)
def test_copies_go_on_alike(tier, way):
    model, profile = model_on(GPU, torch.bfloat16)
    cache = filled(model, profile, tier)
    other = copy.deepcopy(cache) if way == "deepcopy" else pickle.loads(pickle.dumps(cache))
    assert torch.equal(steps(other.binding.model, other, NEXT), steps(model, cache, NEXT))


def test_padding_is_refused_as_on_the_cpu():
    model, profile = model_on()
    cache = SpectralCache(model, profile, tier="hot")
    ids, mask = prompt(300).to(GPU), torch.ones(1, 300, dtype=torch.int64, device=GPU)
    mask[0, :20] = 0
    model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=2, pad_token_id=0)
    with pytest.raises(InputError, match="padding"):
        cache.pack()
    positions = torch.arange(300, device=GPU)[None]
    plain = SpectralCache(model, profile, tier="cold", background=False)
    with torch.no_grad():
        model(input_ids=ids, position_ids=positions, past_key_values=plain)
    assert plain.pack()[0].header.tokens == 300


def test_unpacking_on_a_stream_of_ones_own():
    model, profile = model_on()
    packet = filled(model, profile, "cold").pack()[0]
    expected = unpack_cache(model, profile, packet)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # the stream that threads have by themselves
    with torch.cuda.stream(side):
        found = unpack_cache(model, profile, packet)
        for a, b in zip(found.layers, expected.layers, strict=True):
            assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
    assert read(model, found, NEXT).isfinite().all()
