"""The hot codec: what the evaluation measures is, byte for byte, what a cache holds."""

import torch
from conftest import profile_of

from spectralquant import SpectralCache
from spectralquant.codec.block import KVBlock
from spectralquant.codec.hot.codec import CodeParts, HotCodec
from spectralquant.codec.hot.linear import row_matrices
from spectralquant.codec.hot.pages import rows_to_bands
from spectralquant.geometry import BLOCK
from spectralquant.rotary import Rotation
from sqkernels.common.reference import write_page


def block_of(geometry, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (BLOCK, geometry.layers, geometry.kv_heads, geometry.head_dim)
    keys, values = (torch.randn(shape, generator=generator) for _ in range(2))
    angle = torch.rand(BLOCK, geometry.head_dim // 2, generator=generator) * 6
    return KVBlock(keys, values, 0, rotations=(Rotation(angle.cos(), angle.sin()),) * geometry.layers)


def test_a_cache_holds_what_the_codec_codes():
    loaded, profile = profile_of("llama")
    cache = SpectralCache(loaded.model, profile, tier="hot", kernels="torch")
    ids = torch.randint(5, 500, (1, 400), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loaded.model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
    tier, stored = cache.tiers["hot"], cache.state.sequences[0][-1]
    geometry = loaded.geometry
    keys, values = tier.whole(stored, None, None)
    plain = KVBlock(
        keys.permute(2, 0, 1, 3), values.permute(2, 0, 1, 3), stored.start, rotations=(None,) * geometry.layers
    )
    coded = tier.codec.encode(plain)
    assert coded.nbytes == stored.nbytes == len(tier.to_bytes(stored))
    assert b"".join(page.numpy().tobytes() for pair in coded.pages for page in pair) == tier.to_bytes(stored)
    for decoded, held in zip(tier.codec.decode(coded), (plain.keys, plain.values), strict=True):
        assert torch.allclose(decoded, held, atol=1e-5)


def test_the_kernels_oracle_writes_the_same_codes():
    """Keys and values on the border between two codes may fall to either side: one in ten thousand bytes at most."""
    loaded, profile = profile_of("llama")
    tier, geometry = profile.tier("hot"), loaded.geometry
    codec, block = HotCodec(tier, geometry), block_of(geometry)
    matrices = row_matrices(tier, geometry, range(geometry.layers), "cpu")
    plain = KVBlock(block.keys, block.values, 0, rotations=(None,) * geometry.layers)
    heads = [x.flatten(1, 2).transpose(0, 1).contiguous() for x in (plain.keys, plain.values)]
    rows = rows_to_bands(write_page(*heads, matrices), matrices, codec)
    bands = torch.cat([page.reshape(-1) for pair in codec.encode(plain).pages for page in pair])
    assert rows.shape == bands.shape and (rows != bands).float().mean() <= 1e-4


def test_keys_are_coded_after_rope_and_turned_back():
    loaded, profile = profile_of("llama")
    codec, block = HotCodec(profile.tier("hot"), loaded.geometry), block_of(loaded.geometry)
    still = KVBlock(block.keys, block.values, 0, rotations=(None,) * loaded.geometry.layers)
    turned, unturned = codec.encode(block), codec.encode(still)
    assert not torch.equal(turned.pages[0][0], unturned.pages[0][0])
    assert torch.equal(turned.pages[0][1], unturned.pages[0][1])
    keys, values = codec.decode(turned)
    assert keys.shape == values.shape == block.keys.shape
    again = codec.encode(KVBlock(keys, values, 0, rotations=block.rotations))
    for pages, more in zip(turned.pages, again.pages, strict=True):
        assert all((a != b).float().mean() <= 1e-3 for a, b in zip(pages, more, strict=True))


def test_codes_of_six_bits_are_two_parts():
    bits = torch.tensor([6, 8, 2, 6, 4])
    parts = CodeParts.of(bits)
    assert parts.width.tolist() == [4, 2, 8, 2, 4, 2, 4]
    codes = torch.stack([torch.arange(256) % 2**b for b in bits.tolist()], dim=1).to(torch.uint8)
    shuffled = parts.in_order(torch.randperm(7, generator=torch.Generator().manual_seed(0)))
    split = shuffled.split(codes)
    assert bool((split < 2**shuffled.width).all()) and torch.equal(shuffled.join(split), codes)
    again = (split.long() << shuffled.shift).float() @ torch.nn.functional.one_hot(shuffled.component).float()
    assert torch.equal(again, codes.float())


def test_a_profile_has_components_of_six_bits():
    _, profile = profile_of("llama")
    tier = profile.tier("hot")
    assert {4, 6} <= set(torch.cat([tier.key_bits, tier.value_bits]).tolist()) <= {2, 4, 6, 8}
