"""The working set: each block is decoded once, kept by a worker, read as its tier is; no result depends on the worker's speed."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import torch
from conftest import profile_of

from spectralquant.cache.persist.prompt import pack_prompt
from spectralquant.cache.read import working_set
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.errors import InputError, PacketError
from spectralquant.geometry import BLOCK

PROMPT = 1200
EVERYTHING = 1 << 30


def ids(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 500, (1, tokens), generator=torch.Generator().manual_seed(seed))


def unpacked(rows: int = 1, **options) -> SpectralCache:
    loaded, profile = profile_of("llama")
    packets = [pack_prompt(loaded.model, profile, ids(PROMPT, seed))[0] for seed in range(rows)]
    return SpectralCache.unpack(loaded.model, profile, packets, background=True, **options)


@torch.no_grad()
def steps(cache: SpectralCache, count: int = working_set.LAG + 3) -> torch.Tensor:
    """Logits of tokens one after the other."""
    model, rows = profile_of("llama")[0].model, len(cache.state.sequences)
    text = ids(count, seed=9).expand(rows, -1)
    return torch.cat([model(input_ids=text[:, i : i + 1], past_key_values=cache).logits for i in range(count)], dim=1)


def counted(cache: SpectralCache, monkeypatch) -> Counter:
    """How often each block is entropy decoded from now on."""
    codec, times = cache.tiers["cold"].codec, Counter()
    run = codec.coefficients_run

    def coefficients_run(blocks):
        times.update(bytes(b) for b in blocks)
        return run(blocks)

    monkeypatch.setattr(codec, "coefficients_run", coefficients_run)
    return times


@pytest.mark.parametrize("tier", ["exact", "warm", "hot"])
def test_every_block_is_decoded_once_while_decoding_goes_on(tier, monkeypatch):
    cache = unpacked(working_set=EVERYTHING, working_tier=tier)
    times = counted(cache, monkeypatch)
    steps(cache)
    blocks = cache.state.sequences[0]
    assert len(times) == len(blocks) and set(times.values()) == {1}
    kept = cache.reader.working.kept
    assert set(kept) == set(blocks)
    kinds = {"working" if tier == "exact" else tier}
    assert {kind for kind, _, _ in cache.reader.runs()} == kinds
    assert cache.stats().working_set_bytes > 0 and cache.reader.working.waiting_bytes == 0


@pytest.mark.parametrize("tier", ["exact", "warm", "hot"])
def test_numbers_are_those_of_decoding_every_time_until_codes_are_swapped_in(tier):
    plain, kept = steps(unpacked()), steps(unpacked(working_set=EVERYTHING, working_tier=tier))
    scale = float(plain.abs().max())
    before = slice(0, working_set.LAG)
    assert torch.allclose(kept[:, before], plain[:, before], atol=1e-4 * scale)
    after = (kept[:, working_set.LAG + 1 :] - plain[:, working_set.LAG + 1 :]).abs().max() / scale
    assert after < 1e-3 if tier == "exact" else 0 < after < 0.5


def test_a_slow_worker_changes_no_number(monkeypatch):
    calm = steps(unpacked(working_set=EVERYTHING, working_tier="warm"))
    cache = unpacked(working_set=EVERYTHING, working_tier="warm")
    make = working_set.WorkingSet._make

    def late(self, *arguments):
        time.sleep(0.05)
        return make(self, *arguments)

    monkeypatch.setattr(working_set.WorkingSet, "_make", late)
    assert torch.equal(steps(cache), calm)
    assert cache.spent.wait_s > 0


def test_what_does_not_fit_stays_cold_and_the_newest_fit_first():
    cache = unpacked(working_tier="warm", working_set=1)
    page = cache.tiers["warm"].page_bytes
    steps(cache)
    assert not cache.reader.working.kept
    cache = unpacked(working_tier="warm", working_set=3 * page + 1)
    steps(cache)
    assert [b in cache.reader.working.kept for b in cache.state.sequences[0]][-3:] == [True] * 3
    assert cache.stats().working_set_bytes == 3 * page
    assert [kind for kind, _, _ in cache.reader.runs()] == ["cold", "warm"]


def test_what_waits_for_a_worker_is_counted():
    cache, plain = unpacked(working_set=EVERYTHING), unpacked()
    steps(cache, 1), steps(plain, 1)
    assert cache.reader.working.waiting_bytes > 0
    more = cache.stats().resident_bytes - plain.stats().resident_bytes
    assert more >= cache.reader.working.waiting_bytes


def test_several_sequences_of_which_only_some_blocks_are_kept_as_hot_codes():
    plain, cache = unpacked(2), unpacked(2, working_tier="hot", working_set=EVERYTHING)
    page = cache.tiers["hot"].page_bytes
    cache.options["working_set"] = 5 * page  # an odd number: one sequence has a block more than the other
    a, b = steps(plain), steps(cache)
    kept = cache.reader.working.kept
    assert len(kept) == 5
    assert any(kind == "mixed" for kind, _, _ in cache.reader.runs())
    assert (a - b).abs().max() < 0.5 * a.abs().max()


def test_blocks_that_go_away_meanwhile_are_not_kept():
    cache = unpacked(working_set=EVERYTHING)
    steps(cache, 2)
    cache.crop(-(3 * BLOCK))
    steps(cache)
    live = set(cache.state.sequences[0])
    assert live and set(cache.reader.working.kept) <= live
    cache.reset()
    assert not cache.reader.working.kept and not cache.reader.working.waiting_bytes


def test_a_damaged_block_is_told_when_it_is_read():
    loaded, profile = profile_of("llama")
    packet = bytearray(pack_prompt(loaded.model, profile, ids(PROMPT))[0].data)
    packet[len(packet) // 3] ^= 1
    with pytest.raises(PacketError):
        steps(SpectralCache.unpack(loaded.model, profile, bytes(packet), working_set=EVERYTHING, background=True))


def test_a_working_set_needs_its_tier():
    loaded, profile = profile_of("llama")
    with pytest.raises(InputError, match="exact, warm, hot"):
        SpectralCache(loaded.model, profile, working_tier="cool")
    with pytest.raises(InputError, match="hot tier"):
        SpectralCache(loaded.model, None, tier="exact", working_tier="hot")
