"""A prompt that a cache holds already is fed a second time by `generate`: it is said, and there is a way out."""

import copy
import pickle
import warnings

import pytest
import torch

import spectralquant as sq
from spectralquant.errors import RepeatedPromptWarning
from tests.conftest import profile_of

PROMPT = torch.randint(0, 512, (1, 520), generator=torch.Generator().manual_seed(5))
MORE = torch.randint(0, 512, (1, 900), generator=torch.Generator().manual_seed(6))


@pytest.fixture(scope="module")
def llama():
    loaded, profile = profile_of("llama")
    return loaded.model, profile


@pytest.fixture(scope="module")
def packet(llama):
    return sq.pack_prompt(*llama, PROMPT)[0]


OPENERS = {
    "unpack_cache": sq.unpack_cache,
    "SpectralCache.unpack": sq.SpectralCache.unpack,
}


def generate(model, cache, ids, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False, **options)
    return made, [w for w in caught if w.category is RepeatedPromptWarning]


@pytest.mark.parametrize("opened", OPENERS.values(), ids=list(OPENERS))
@pytest.mark.parametrize("given", (520, 300))
def test_the_packed_prompt_alone_is_said(llama, packet, opened, given):
    _, told = generate(llama[0], opened(*llama, packet), PROMPT[:, :given])
    assert len(told) == 1
    assert f"{given} tokens and a cache that holds 520" in str(told[0].message)
    assert "crop(-1)" in str(told[0].message)


@pytest.mark.parametrize("opened", OPENERS.values(), ids=list(OPENERS))
@pytest.mark.parametrize("more", (1, 40, 520, 900))
def test_the_packed_prompt_and_more_is_not(llama, packet, opened, more):
    _, told = generate(llama[0], opened(*llama, packet), torch.cat([PROMPT, MORE[:, :more]], dim=1))
    assert not told


@pytest.mark.parametrize("opened", OPENERS.values(), ids=list(OPENERS))
def test_one_token_less_is_the_way_out(llama, packet, opened):
    cache = opened(*llama, packet)
    cache.crop(-1)
    made, told = generate(llama[0], cache, PROMPT)
    assert not told
    assert cache.get_seq_length() == made.shape[1] - 1
    other = opened(*llama, packet)
    first = made[:, 520:521]
    again, _ = generate(llama[0], other, torch.cat([PROMPT, first], dim=1))
    assert torch.equal(again[:, : made.shape[1]], made)


@pytest.mark.parametrize("tier", ("exact", "hot", "warm", "cold"))
def test_a_cache_from_an_earlier_turn(llama, tier):
    model, profile = llama
    cache = sq.SpectralCache(model, profile, tier=tier)
    made, told = generate(model, cache, PROMPT)
    assert not told
    made, told = generate(model, cache, torch.cat([made, MORE[:, :3]], dim=1))
    assert not told
    _, told = generate(model, cache, PROMPT)
    assert len(told) == 1


@pytest.mark.parametrize(
    "options", ({"prefill_chunk_size": 64}, {"num_beams": 2}, {"num_return_sequences": 2, "num_beams": 2}), ids=str
)
def test_chunks_and_beams_are_no_reason(llama, options):
    cache = sq.SpectralCache(*llama, tier="hot")
    assert not generate(llama[0], cache, PROMPT, **options)[1]


@pytest.mark.parametrize(
    "copied", (copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))), ids=("copy", "pickle")
)
def test_copies_say_it_too(llama, packet, copied):
    cache = sq.unpack_cache(*llama, packet)
    assert len(generate(llama[0], copied(cache), PROMPT)[1]) == 1
    assert len(generate(llama[0], copied(cache), PROMPT)[1]) == 1


def test_without_generate_nothing_is_assumed(llama, packet):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RepeatedPromptWarning)
        with torch.no_grad():
            llama[0](input_ids=PROMPT, past_key_values=sq.unpack_cache(*llama, packet))
