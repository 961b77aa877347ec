"""One entry point for attention over any tier, against dense attention over what the tier holds."""

import copy

import pytest
import torch
from conftest import profile_of

import spectralquant
from spectralquant import SpectralCache, svd_reconstruct_attention
from spectralquant.errors import InputError
from sqkernels.dense_decode.reference import dense_decode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def filled():
    loaded, profile = profile_of("llama")
    model = copy.deepcopy(loaded.model).to(DEVICE)
    ids = torch.randint(5, 500, (1, 500), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    caches = {}
    for tier in ("exact", "hot", "warm", "cold"):
        caches[tier] = SpectralCache(
            model, profile, tier=tier, kernels="triton" if tier == "hot" else "auto", background=False
        )
        with torch.no_grad():
            model(input_ids=ids, past_key_values=caches[tier])
    return model, profile, caches


def query(cache, seed=1):
    heads, dim = cache.geometry.heads, cache.geometry.head_dim
    return torch.randn(1, heads, dim, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("tier", ["exact", "hot", "warm", "cold"])
def test_every_tier(filled, tier, backend):
    cache = filled[2][tier]
    q = query(cache)
    for layer in (0, len(cache.layers) - 1):
        want = dense_decode(q, *cache.view(layer).dense(), q.shape[-1] ** -0.5, torch.float64)
        got = svd_reconstruct_attention(q, cache, layer, backend=backend)
        assert float((got - want).norm() / want.norm()) < 2e-3


def test_a_packet_is_read_like_the_cache_it_came_from(filled):
    model, profile, caches = filled
    packet = caches["cold"].pack()[0]
    q = query(caches["cold"])
    got = svd_reconstruct_attention(q, packet, 1, model=model, profile=profile, backend="reference")
    want = svd_reconstruct_attention(q, caches["cold"], 1, backend="reference")
    assert float((got - want).norm() / want.norm()) < 1e-2
    with pytest.raises(InputError, match="model=…, profile=…"):
        svd_reconstruct_attention(q, packet)


def test_pages_and_a_selection(filled):
    model, profile, caches = filled
    cache = SpectralCache(model, profile, tier="hot", kernels="triton", select=0.25)
    ids = torch.randint(5, 500, (1, 500), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache)
    q = query(cache)
    whole, part = (svd_reconstruct_attention(q, cache, 0, select=s) for s in (1.0, 1))
    assert 0 < float((whole - part).norm() / whole.norm()) < 1.5
    pages = next(s for s in cache.view(0).segments() if hasattr(s, "pages")).pages
    with pytest.raises(InputError, match="exact=ExactTokens"):
        svd_reconstruct_attention(q, pages)
    with pytest.raises(InputError, match="select= needs hot codes"):
        svd_reconstruct_attention(q, caches["warm"], select=0.5)
    with pytest.raises(InputError, match="outside 0 to"):
        svd_reconstruct_attention(q, caches["warm"], 99)


def test_it_is_public():
    assert "svd_reconstruct_attention" in spectralquant.__all__
