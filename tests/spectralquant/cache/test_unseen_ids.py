"""Tokens whose ids a cache did not see: found again where there are some, said where there are none."""

import copy
import warnings

import pytest
import torch
from conftest import profile_of, small_tokenizer

from spectralquant import NotCompressedWarning, SpectralCache
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize


def text(tokens: int, start: int = 2000) -> torch.Tensor:
    return tokenize(small_tokenizer(), load_text("builtin:pydoc"), start + tokens + 9).ids[start : start + tokens][None]


def soft(model, tokens: int, rows: int = 1) -> torch.Tensor:
    """Embeddings that are no token's."""
    scale = float(model.get_input_embeddings().weight.std())
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(rows, tokens, model.config.hidden_size, generator=generator)


def cold(model, profile, **options) -> SpectralCache:
    return SpectralCache(model, profile, tier="cold", **{"background": False, **options})


def cold_only(profile):
    """The same profile as `sq calibrate` makes it by default: the cold tier alone."""
    made = copy.copy(profile)
    object.__setattr__(made, "tiers", {"cold": profile.tier("cold")})
    return made


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.slow
def test_embeddings_of_tokens_are_coded_like_their_ids(architecture, background):
    loaded, profile = profile_of(architecture)
    model, ids = loaded.model, text(900)
    caches = [cold(model, profile, background=background, lag=0) for _ in range(2)]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", NotCompressedWarning)
        embeds = model.get_input_embeddings()(ids)
        for cache, given in zip(caches, ({"input_ids": ids}, {"inputs_embeds": embeds}), strict=True):
            model.generate(**given, past_key_values=cache, max_new_tokens=140, min_new_tokens=140, do_sample=False)
        seen, unseen = (cache.stats() for cache in caches)
    assert set(unseen.tiers) == {"cold"}
    assert unseen.payload_ratio == pytest.approx(seen.payload_ratio, rel=0.02)
    assert not unseen.not_compressed
    for mine, theirs in zip(*(cache.state.sequences[0] for cache in caches), strict=True):
        found, expected = (cache.tiers["cold"].codec.coefficients(b.payload).ids[0][1] for b in (theirs, mine))
        assert (found == expected).float().mean() > 0.95, "the ids themselves are found again"


def test_the_exact_end_of_a_packet_is_coded_when_it_leaves_the_window():
    loaded, profile = profile_of("llama")
    model, ids = loaded.model, text(700)
    cache = cold(model, profile)
    with torch.no_grad():
        model(ids[:, :500], past_key_values=cache, logits_to_keep=1)
        again = SpectralCache.unpack(model, profile, cache.pack(), background=False)
        for c in (cache, again):
            model(ids[:, 500:], past_key_values=c, logits_to_keep=1)
        assert [b.tier for b in again.state.sequences[0]] == ["cold"] * 4
        expected = model(ids[:, :1], past_key_values=cache).logits
        found = model(ids[:, :1], past_key_values=again).logits
    assert torch.allclose(found, expected, atol=0.05 * float(expected.abs().max()))
    assert not again.stats().not_compressed


@pytest.mark.parametrize("rows", [1, 2])
def test_soft_prompts_go_to_the_next_tier_up_and_that_is_said(rows):
    loaded, profile = profile_of("llama")
    model = loaded.model
    cache = cold(model, profile)
    with torch.no_grad(), pytest.warns(NotCompressedWarning, match="ids were not seen") as said:
        model(inputs_embeds=soft(model, 500, rows), past_key_values=cache, logits_to_keep=1)
    assert len(said) == 1, "once, not once a block"
    stats = cache.stats()
    assert set(stats.tiers) == {"warm"}
    [reason] = [r for r in stats.not_compressed if r.reason == "other_tier"]
    assert reason.tokens * rows == stats.tiers["warm"].tokens
    assert "tier warm, not cold" in reason.message


def test_soft_prompts_without_another_tier_stay_exact_and_that_is_said():
    loaded, profile = profile_of("llama")
    model = loaded.model
    with_only_cold = cold_only(profile)
    cache = cold(model, with_only_cold)
    with torch.no_grad(), pytest.warns(NotCompressedWarning, match="tier exact, not cold"):
        model(inputs_embeds=soft(model, 400), past_key_values=cache, logits_to_keep=1)
    assert set(cache.stats().tiers) == {"exact"}
    ids = text(500)
    cache = cold(model, with_only_cold)
    with torch.no_grad():
        mixed = torch.cat([soft(model, 20), model.get_input_embeddings()(ids)], dim=1)
        model(inputs_embeds=mixed, past_key_values=cache, logits_to_keep=1)
    assert [b.tier for b in cache.state.sequences[0]][1:] == ["cold"] * 2, (
        "a short soft prompt costs its own block at most"
    )


def test_blocks_that_cold_cannot_take_are_tried_once():
    loaded, profile = profile_of("llama")
    cache = cold(loaded.model, profile, max_bytes=1)
    with torch.no_grad(), pytest.warns(UserWarning, match="over max_bytes"):
        loaded.model(inputs_embeds=soft(loaded.model, 500), past_key_values=cache, logits_to_keep=1)
        before = list(cache.state.sequences[0])
        tried = []
        guess = cache.tiers["cold"].with_ids
        cache.tiers["cold"].with_ids = lambda block: tried.append(block) or guess(block)
        for i in range(3):
            loaded.model(input_ids=text(1, i), past_key_values=cache)
    assert cache.state.sequences[0] == before
    assert not tried
    assert cache.stats().spent.demotions == 0


@pytest.mark.parametrize("kind", ["tokens", "soft"])
def test_packets_of_blocks_without_ids(kind):
    """A warm cache fed with embeddings packs cold blocks where ids are found, exact ones where not."""
    loaded, profile = profile_of("llama")
    model = loaded.model
    cache = SpectralCache(model, profile, tier="warm", background=False)
    embeds = model.get_input_embeddings()(text(500)) if kind == "tokens" else soft(model, 500)
    with torch.no_grad():
        model(inputs_embeds=embeds, past_key_values=cache, logits_to_keep=1)
    again = SpectralCache.unpack(model, profile, cache.pack(), background=False)
    assert again.get_seq_length() == 500
    assert {b.tier for b in again.state.sequences[0]} == ({"cold"} if kind == "tokens" else set())
