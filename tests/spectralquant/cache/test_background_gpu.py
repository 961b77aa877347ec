"""Work in the background on a GPU: late or not, the same numbers; several caches, threads and streams at once."""

import threading
from dataclasses import replace

import pytest
import torch
from gpu_for_tests import GPU, TIERS, distance, filled, model_on, prompt, read, steps

from spectralquant import SpectralBufferPool, SpectralCache
from spectralquant.cache.tiers import cold as cold_tier

pytestmark = pytest.mark.gpu
START = 500  # twelve tokens before a block is due; it is swapped in 32 later
NEXT = prompt(60, seed=5)


def sleep(seconds):
    torch.cuda._sleep(int(seconds * 1.8e9))


def codes(cache):
    """Bytes of every block."""
    return [cache.tiers[b.tier].to_bytes(b) for blocks in cache.state.sequences for b in blocks]


def run(model, profile, tier, **options):
    cache = filled(model, profile, tier, tokens=START, **options)
    return steps(model, cache, NEXT), cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tier", TIERS)
def test_a_slow_worker_changes_no_number(tier, dtype, monkeypatch):
    model, profile = model_on(GPU, dtype)
    expected, calm = run(model, profile, tier, background=True)
    cache = SpectralCache(model, profile, tier=tier, background=True)
    encode = cache.tiers[tier].encode
    here = threading.get_ident()
    slept = []

    def late(block):
        if threading.get_ident() != here:
            slept.append(1)
            sleep(0.02)
        coded = encode(block)
        if threading.get_ident() != here:
            sleep(0.02)
        return coded

    monkeypatch.setattr(cache.tiers[tier], "encode", late)
    read(model, cache, prompt(START))
    found = steps(model, cache, NEXT)
    assert slept, "no block was coded in the background"
    assert torch.equal(found, expected)
    assert codes(cache) == codes(calm)


def test_prefetched_blocks_are_complete_when_attention_reads_them(monkeypatch):
    model, profile = model_on()
    expected = read(model, filled(model, profile, "cold"), NEXT[:, :1])
    halved, here, slept = cold_tier.halved, threading.get_ident(), []

    def late(coded, dtype):
        found = halved(coded, dtype)
        if threading.get_ident() == here:
            return found
        slept.append(1)
        sleep(0.02)
        return replace(found, y=tuple(y + 0 for y in found.y))

    monkeypatch.setattr(cold_tier, "halved", late)
    cache = filled(model, profile, "cold")
    for _ in range(5):
        found = read(model, cache, NEXT[:, :1])
        assert torch.equal(found, expected)
        cache.crop(-1)
    assert slept, "no block was decoded in the background"


def test_background_work_that_is_forgotten_harms_nothing():
    model, profile = model_on()
    pool = SpectralBufferPool(GPU)
    cache = filled(model, profile, "hot", tokens=START, background=True, pool=pool)
    encode, here = cache.tiers["hot"].encode, threading.get_ident()
    cache.tiers["hot"].encode = lambda b: (threading.get_ident() != here and sleep(0.05), encode(b))[1]
    steps(model, cache, NEXT[:, :20])
    assert cache.compressor._pending
    cache.crop(-20)
    cache.reset()
    other = filled(model, profile, "hot", tokens=START, pool=pool)
    expected = steps(model, filled(model, profile, "hot", tokens=START), NEXT)
    assert torch.equal(steps(model, other, NEXT), expected)


@pytest.mark.parametrize("tier", TIERS)
def test_a_stream_of_ones_own(tier):
    model, profile = model_on(GPU, torch.bfloat16)
    expected, _ = run(model, profile, tier, background=True)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        found, _ = run(model, profile, tier, background=True)
    side.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("tier", TIERS)
def test_caches_take_turns_in_one_pool(tier):
    model, profile = model_on(GPU, torch.bfloat16)
    expected, _ = run(model, profile, tier, background=True)
    pool = SpectralBufferPool(GPU)
    caches = [SpectralCache(model, profile, tier=tier, background=True, pool=pool) for _ in range(3)]
    for cache in caches:
        read(model, cache, prompt(START))
    rows = [[] for _ in caches]
    for i in range(NEXT.shape[1]):
        for row, cache in zip(rows, caches, strict=True):
            row.append(read(model, cache, NEXT[:, i : i + 1]))
        if i == 30:
            other = filled(model, profile, tier, tokens=START, pool=pool)  # comes and goes, its pages are used again
            del other
    assert all(torch.equal(torch.cat(row, dim=1), expected) for row in rows)


@pytest.mark.parametrize("host", [False, True])
def test_threads_with_streams_of_their_own_share_a_pool(host):
    model, profile = model_on(GPU, torch.bfloat16)
    tiers = ("hot", "warm", "cold", "exact")
    options = {"background": True, "host": host, "kernels": "torch" if host else "auto"}
    expected = {tier: run(model, profile, tier, **options)[0] for tier in tiers}
    pool = SpectralBufferPool("cpu" if host else GPU, pinned=host)
    found, errors = {}, []

    def work(tier):
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream), torch.no_grad():
                for _ in range(3):
                    found.setdefault(tier, []).append(run(model, profile, tier, pool=pool, **options)[0])
                stream.synchronize()
        except BaseException as error:
            errors.append(error)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(tier,)) for tier in tiers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]
    for tier in tiers:
        assert len(found[tier]) == 3
        assert all(torch.equal(x, expected[tier]) for x in found[tier]), tier
    pool.trim()
    assert pool.stats().allocated == 0


def test_generation_in_bfloat16_with_background_work():
    model, profile = model_on(GPU, torch.bfloat16)
    ids = prompt(START).to(GPU)
    made = []
    for _ in range(2):
        cache = SpectralCache(model, profile, tier="cold", background=True)
        settings = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        made.append(
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **settings)
        )
        assert cache.stats().reconstructor_failure is None
        assert cache.stats().tiers["cold"].tokens == 380
    assert torch.equal(*made)
    fine = filled(model, profile, "cold", tokens=START, step_scale=0.01)
    exact = filled(model, profile, "exact", tokens=START)
    assert distance(read(model, fine, NEXT[:, :1]), read(model, exact, NEXT[:, :1])) < 0.05
