"""The same caches on a GPU: lossless in every mode, tiers agree with the CPU, codes pinned on the host."""

import copy

import pytest
import torch
from conftest import profile_of
from transformers import DynamicCache

from spectralquant import SpectralCache
from spectralquant.cache.hybrid import HybridCacheManager

MODES = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beam": {"num_beams": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 4},
    "chunked": {"prefill_chunk_size": 97},
}


def on_gpu(dtype=torch.float32):
    loaded, profile = profile_of("llama")
    return copy.deepcopy(loaded.model).cuda().to(dtype), copy.deepcopy(profile)


def run(model, cache, **options):
    torch.manual_seed(0)
    ids = torch.randint(5, 500, (2, 300), generator=torch.Generator().manual_seed(0)).cuda()
    mask = torch.ones_like(ids)
    mask[0, :20] = 0
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, **options}
    if "prompt_lookup_num_tokens" in options:
        ids, mask = ids[1:], mask[1:]
    return model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **settings)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_lossless(mode):
    model, _ = on_gpu()
    expected = run(model, DynamicCache(config=model.config), **MODES[mode])
    assert torch.equal(run(model, SpectralCache(model), **MODES[mode]), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("exact_bits", [16, 8])
@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("tier", ["hot", "warm", "cold"])
def test_tiers_agree_with_the_cpu(tier, host, exact_bits):
    model, profile = on_gpu()
    ids = torch.randint(5, 500, (1, 700), generator=torch.Generator().manual_seed(0))
    logits = []
    for device in ("cuda", "cpu"):
        there = model.to(device)
        options = {"tier": tier, "background": False, "exact_bits": exact_bits}
        cache = SpectralCache(there, profile, host=host and device == "cuda", **options)
        with torch.no_grad():
            there(input_ids=ids.to(device), past_key_values=cache)
            logits.append(there(input_ids=ids[:, :1].to(device), past_key_values=cache).logits.cpu())
        if host and device == "cuda" and tier != "cold":
            assert cache.pool._classes[cache.tiers[tier].page_bytes].slabs[0].is_pinned()
    assert torch.allclose(*logits, atol=0.05 * float(logits[1].abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_hybrid(dtype):
    model, _ = on_gpu(dtype)
    out = run(model, HybridCacheManager(model, below="h2o", heavy=32, recent=64))
    assert out.shape == (2, 320)
