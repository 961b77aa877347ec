"""A cache fed block by block does to the model what the evaluation harness says the codec does."""

import pytest
import torch
from conftest import profile_of

from spectralquant import SpectralCache
from spectralquant.evaluation.streaming import stream_window
from spectralquant.geometry import BLOCK
from spectralquant.methods.coding.spectral import SpectralFixed, fixed_codec, tier_method
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize


def streamed_kl(model, cache, ids):
    """Mean KL(exact ‖ compressed) when the cache is fed in blocks."""
    total = 0.0
    with torch.no_grad():
        exact = model(input_ids=ids[None], use_cache=False).logits[0].float().log_softmax(-1)
        for start in range(0, len(ids), BLOCK):
            part = ids[None, start : start + BLOCK]
            coded = model(input_ids=part, past_key_values=cache).logits[0].float().log_softmax(-1)
            here = exact[start : start + BLOCK]
            total += (here.exp() * (here - coded)).sum().item() - (
                0 if start + BLOCK < len(ids) else _last(here, coded)
            )
    return total / (len(ids) - 1)


def _last(exact, coded):
    return (exact[-1].exp() * (exact[-1] - coded[-1])).sum().item()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize("tier", ["hot", "warm", "cold"])
def test_streaming_kl_equals_the_harness(architecture, tier):
    loaded, profile = profile_of(architecture)
    ids = tokenize(loaded.tokenizer, load_text("builtin:stdlib"), 2000).windows(7 * BLOCK, 1)[0]
    if tier == "cold":
        method = tier_method(profile.tier("cold"), loaded)
    else:
        method = SpectralFixed(fixed_codec(tier == "hot")(profile.tier(tier), loaded.geometry))
    found = stream_window(loaded.model, loaded.geometry, ids, [method])[0]
    cache = SpectralCache(loaded.model, profile, tier=tier, background=False)
    assert streamed_kl(loaded.model, cache, ids) == pytest.approx(found.kl / found.tokens, rel=0.02)
    stats = cache.stats()
    assert sum(t.tokens for t in stats.tiers.values()) == found.coded_tokens
    assert sum(t.bytes for t in stats.tiers.values()) == pytest.approx(found.coded_bytes, rel=0.07)


def test_background_work_changes_when_a_block_is_swapped_and_nothing_else():
    loaded, profile = profile_of("llama")
    ids = torch.randint(5, 500, (1, 400), generator=torch.Generator().manual_seed(1))
    results = []
    for threads in (1, 3):
        cache = SpectralCache(loaded.model, profile, tier="cold", background=True, threads=threads)
        with torch.no_grad():
            loaded.model(input_ids=ids[:, :200], past_key_values=cache)
            logits = [loaded.model(input_ids=ids[:, i : i + 1], past_key_values=cache).logits for i in range(200, 400)]
        results.append((torch.cat(logits, 1), cache.coded_tokens, cache.stats().tiers["cold"].bytes))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]
    assert results[0][1] == 124, "at 400 tokens the second block is coded, but its lag of 32 tokens is not over"
