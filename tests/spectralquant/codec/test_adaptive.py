"""Ranks rise where text drifts from the profile, within the byte budget; every block says how it was coded."""

import copy

import pytest
import torch
from conftest import profile_of

from spectralquant import SpectralCache
from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold.adaptive import AdaptiveRankCompressor
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.errors import InputError, PacketError


def codec(**options) -> tuple[AdaptiveRankCompressor, SpectralCodec]:
    loaded, profile = profile_of("llama")
    embedding = loaded.model.get_input_embeddings().weight.detach()
    base = SpectralCodec(profile.tier("cold"), loaded.geometry, embedding, step_scale=3.0)
    options = {"tolerance": 1.0, "min_ratio": 2.0, **options}
    return AdaptiveRankCompressor(base, profile.heads, profile.sidecar.tiers["cold"].step, **options), base


def block(seed: int, scale: float = 1.0) -> KVBlock:
    g = profile_of("llama")[0].geometry
    generator = torch.Generator().manual_seed(seed)
    shape = (128, g.layers, g.kv_heads, g.head_dim)
    keys, values = scale * torch.randn(shape, generator=generator), scale * torch.randn(shape, generator=generator)
    return KVBlock(keys, values, 128 * seed + 128, token_ids=torch.randint(0, 500, (128,), generator=generator))


def weighted_error(coded: AdaptiveRankCompressor, x: KVBlock, pair) -> float:
    residual = torch.stack([x.keys - pair[0], x.values - pair[1]]).permute(0, 2, 3, 1, 4).flatten(0, 2)
    return float((residual @ coded.generations[0][0].transpose(1, 2)).square().sum())


def test_enhanced_blocks_come_back_with_less_weighted_error():
    adaptive, base = codec()
    x = block(0)
    plain, data = base.encode(x), adaptive.encode(x)
    assert adaptive.is_enhanced(data)
    before = weighted_error(adaptive, x, base.decode(plain))
    after = weighted_error(adaptive, x, adaptive.decode(data))
    log = adaptive.log[0]
    assert after < 0.7 * before
    assert after / before == pytest.approx(log.drift_after / log.drift, rel=1e-3)
    assert log.heads_raised > 0
    assert log.nbytes == len(data) <= x.fp16_bytes / 2


def test_a_layer_alone_equals_the_whole_block():
    adaptive, _ = codec()
    data = adaptive.encode(block(1))
    whole = adaptive.decode(data)
    coded = adaptive.coefficients(data)
    for layer in range(3):
        for mine, full in zip(adaptive.layer(coded, layer), whole, strict=True):
            assert torch.allclose(mine, full[:, layer].flatten(1), atol=1e-4)


def test_in_tolerance_nothing_changes():
    adaptive, base = codec(tolerance=1e9)
    x = block(2)
    assert adaptive.encode(x) == base.encode(x)
    assert adaptive.log[0].heads_raised == 0


def test_the_byte_budget_is_kept():
    tight, base = codec(min_ratio=6.0)
    x = block(3)
    assert len(tight.encode(x)) <= max(x.fp16_bytes / 6.0, len(base.encode(x)))


def test_bases_are_refreshed_and_old_blocks_stay_readable():
    adaptive, _ = codec(refresh_after=2)
    blocks = [block(i) for i in range(5)]
    coded = [adaptive.encode(b) for b in blocks]
    assert [entry.generation for entry in adaptive.log] == [0, 0, 1, 1, 2]
    assert adaptive.basis_bytes > 0
    for x, data, entry in zip(blocks, coded, adaptive.log, strict=True):
        error = weighted_error(adaptive, x, adaptive.decode(data)) / 128 / float(adaptive.expected.sum())
        assert error == pytest.approx(entry.drift_after, rel=1e-2)
    other, _ = codec()
    with pytest.raises(PacketError, match="generation"):
        other.decode(coded[-1])
    other.load_state(adaptive.state())
    assert torch.equal(other.decode(coded[-1])[0], adaptive.decode(coded[-1])[0])


@pytest.mark.parametrize("cut", [1, 5, 200])
def test_damage_is_noticed(cut):
    adaptive, _ = codec()
    data = adaptive.encode(block(4))
    with pytest.raises(PacketError):
        adaptive.decode(data[:-cut])


def test_bad_options():
    with pytest.raises(InputError):
        codec(tolerance=0)


def test_a_cache_with_an_adaptive_cold_tier_reads_copies_and_packs():
    loaded, profile = profile_of("llama")
    ids = torch.randint(5, 500, (1, 700), generator=torch.Generator().manual_seed(0))
    drift = {"tolerance": 0.2, "min_ratio": 2.0, "refresh_after": 1}
    cache = SpectralCache(loaded.model, profile, tier="cold", adaptive_ranks=drift, background=False)
    plain = SpectralCache(loaded.model, profile, tier="cold", background=False)
    with torch.no_grad():
        for part in ids.split(128, dim=1):
            loaded.model(input_ids=part, past_key_values=cache)
            loaded.model(input_ids=part, past_key_values=plain)
    assert cache.stats().tiers["cold"].bytes > plain.stats().tiers["cold"].bytes
    other = copy.deepcopy(cache)
    again = SpectralCache.unpack(loaded.model, profile, cache.pack())
    assert torch.equal(other.view(1).dense()[0], cache.view(1).dense()[0])
    assert again.get_seq_length() == 700
