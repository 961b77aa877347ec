"""Packing, unpacking and caching with float16 products, which GPUs use: the same prompts as without, on any machine."""

import copy

import pytest
import torch
from conftest import profile_of
from gpu_for_tests import GPU, model_on

from spectralquant import SpectralCache
from spectralquant.cache.persist.prompt import pack_prompt, unpack_cache
from spectralquant.codec.cold import rans_block, spectral
from spectralquant.codec.packet import CODED, SpectralPacket
from spectralquant.errors import PacketError
from spectralquant.hooks.observe import attention_received
from spectralquant.hooks.received import attend_and_receive
from spectralquant.hooks.tap import AttentionTap

TOKENS = 700


@pytest.fixture
def with_halves(monkeypatch):
    """The models' profiles with codecs of float16 products."""

    def make(name):
        loaded, profile = profile_of(name)
        profile = copy.copy(profile)
        profile.codecs = {}
        monkeypatch.setattr(spectral, "product_dtype", lambda *a: torch.float16)
        return loaded, profile

    return make


def prompt():
    return torch.randint(5, 500, (1, TOKENS), generator=torch.Generator().manual_seed(0))


def dense(cache):
    return torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers])


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3_text"])
def test_fused_packets_hold_the_same_prompt(name, with_halves):
    loaded, plain = profile_of(name)
    expected = unpack_cache(loaded.model, plain, pack_prompt(loaded.model, plain, prompt())[0])
    _, profile = with_halves(name)
    packet = pack_prompt(loaded.model, profile, prompt())[0]
    assert all(c.dtype == torch.float16 for c in profile.codecs.values())
    kinds = {packet.unchecked(s)[0] for s in packet.sections if s.kind == CODED}
    assert kinds <= set(rans_block.MODES)
    found = unpack_cache(loaded.model, profile, packet)
    assert found.get_seq_length() == TOKENS
    for a, b in zip(found.layers, expected.layers, strict=True):
        for x, y in ((a.keys, b.keys), (a.values, b.values)):
            assert x.shape == y.shape
            assert (x - y).norm() / y.norm() < 0.05


def test_packets_of_either_kind_are_read_by_the_other(with_halves):
    loaded, plain = profile_of("llama")
    first = pack_prompt(loaded.model, plain, prompt())[0]
    _, profile = with_halves("llama")
    second = pack_prompt(loaded.model, profile, prompt())[0]
    assert abs(first.nbytes - second.nbytes) < 0.01 * first.nbytes
    for packet in (first, second):
        both = [dense(unpack_cache(loaded.model, p, packet)) for p in (plain, profile)]
        assert (both[0] - both[1]).norm() / both[0].norm() < 5e-3


def test_a_cold_cache_codes_and_reads_a_prompt(with_halves):
    loaded, plain = profile_of("llama")
    ids, logits = prompt(), []
    with torch.no_grad():
        for profile in (plain, with_halves("llama")[1]):
            cache = SpectralCache(loaded.model, profile, tier="cold", background=False)
            loaded.model(input_ids=ids[:, :-8], past_key_values=cache)
            assert cache.coded_tokens == 508
            logits.append(loaded.model(input_ids=ids[:, -8:], past_key_values=cache).logits)
    assert (logits[0] - logits[1]).norm() / logits[0].norm() < 0.05


def test_a_damaged_section_is_named(with_halves):
    loaded, profile = with_halves("llama")
    packet = pack_prompt(loaded.model, profile, prompt())[0]
    section = next(s for s in packet.sections if s.kind == CODED)
    data = bytearray(bytes(packet))
    data[section.offset + section.length // 2] ^= 4
    with pytest.raises(PacketError, match="checksum"):
        unpack_cache(loaded.model, profile, SpectralPacket(bytes(data)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packets_of_a_gpu_are_read_on_a_cpu_and_the_other_way(dtype):
    models = [model_on(device, dtype) for device in ("cpu", GPU)]
    packets = [pack_prompt(model, profile, prompt())[0] for model, profile in models]
    assert abs(packets[0].nbytes - packets[1].nbytes) < 0.02 * packets[0].nbytes
    for packet in packets:
        caches = [dense(unpack_cache(model, profile, packet)).cpu().float() for model, profile in models]
        assert (caches[0] - caches[1]).norm() / caches[0].norm() < 0.01
        section = next(s for s in packet.sections if s.kind == CODED)
        data = bytearray(bytes(packet))
        data[section.offset + section.length // 2] ^= 4
        for model, profile in models:
            with pytest.raises(PacketError, match="checksum"):
                unpack_cache(model, profile, bytes(data))


@pytest.mark.gpu
def test_attention_of_a_prompt_is_the_models_and_so_is_what_tokens_receive():
    model, _ = model_on(dtype=torch.bfloat16)
    calls = []

    def observe(call):
        both = attend_and_receive(call, 128)
        assert both is not None
        calls.append((both[0], call.run(), both[1][0], attention_received(call, 128)))

    with AttentionTap(model, observe), torch.no_grad():
        model(input_ids=prompt().to(GPU), use_cache=False)
    for output, expected, received, slow in calls:
        assert (output - expected).float().norm() < 0.02 * expected.float().norm()
        assert (received - slow).norm() < 0.02 * slow.norm()
