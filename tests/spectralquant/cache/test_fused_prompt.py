"""Packing, unpacking and caching with float16 products, which GPUs use: the same prompts as without, on any machine."""

import copy

import pytest
import torch
from conftest import profile_of

from spectralquant import SpectralCache
from spectralquant.cache.persist.prompt import pack_prompt, unpack_cache
from spectralquant.codec.cold import rans_block, spectral
from spectralquant.codec.packet import CODED, SpectralPacket
from spectralquant.errors import PacketError

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
