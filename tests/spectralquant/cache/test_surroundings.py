"""What the caller has switched on around a cache changes nothing that the library computes."""

import contextlib
import threading
import time

import pytest
import torch
from transformers import DynamicCache

from spectralquant.cache.persist.prompt import pack_prompt, unpack_cache
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.surroundings import PRODUCTS, own_arithmetic
from tests.conftest import profile_of, random_model

TIERS = ("exact", "hot", "warm", "cold")


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def low_precision_products():
    products = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [p.fp32_precision for p in products]
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        for product, value in zip(products, before, strict=True):
            product.fp32_precision = value


SURROUNDINGS = {
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: torch.device("cpu"),
}


@pytest.fixture(scope="module")
def llama():
    return profile_of("llama")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 512, (1, 700), generator=torch.Generator().manual_seed(5))


def run(loaded, cache, ids, new=4):
    """Logits of a prefill in two parts and of a few steps, as one tensor."""
    model, out = loaded.model, []
    parts = [ids[:, :600], ids[:, 600:-new], *ids[:, -new:].split(1, dim=1)]
    for part in parts:
        out.append(model(input_ids=part, past_key_values=cache, use_cache=True).logits[:, -1].detach().float())
    return torch.cat(out).clone()


def close(a, b, tolerance):
    return ((a - b).norm() / b.norm()).item() < tolerance


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings_do_not_change_a_bit(llama, ids, tier, name):
    loaded, profile = llama
    with torch.no_grad():
        expected = run(loaded, SpectralCache(loaded.model, profile, tier=tier, background=False), ids)
    profile.codecs.clear()
    with SURROUNDINGS[name]():
        cache = SpectralCache(loaded.model, profile, tier=tier, background=False)
        assert torch.equal(run(loaded, cache, ids), expected)
    profile.codecs.clear()


@pytest.mark.parametrize("tier", TIERS)
def test_under_autocast_a_cache_is_as_close_as_the_models_own(llama, ids, tier):
    loaded, profile = llama
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own = run(loaded, DynamicCache(), ids)
        cache = SpectralCache(loaded.model, profile, tier=tier)
        found = run(loaded, cache, ids)
    assert cache.coded_tokens
    with torch.no_grad():
        plain_own = run(loaded, DynamicCache(), ids)
        plain = run(loaded, SpectralCache(loaded.model, profile, tier=tier), ids)
    error = lambda a, b: ((a - b).norm() / b.norm()).item()  # noqa: E731
    rounding = error(own, plain_own)
    assert error(found, own) < error(plain, plain_own) + 2 * rounding
    received = cache.layers[0].received
    assert received is None or received.dtype == torch.float32


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("first", (True, False))
def test_autocast_may_begin_or_end_in_the_middle(llama, ids, tier, first):
    loaded, profile = llama

    def last(autocast):
        cache = SpectralCache(loaded.model, profile, tier=tier, background=False)
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast and first):
                loaded.model(input_ids=ids[:, :600], past_key_values=cache)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast and not first):
                for at in range(600, 620):
                    logits = loaded.model(input_ids=ids[:, at : at + 1], past_key_values=cache).logits
        return logits[:, -1].float()

    assert close(last(True), last(False), 0.05)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("inside_first", (True, False))
def test_inference_mode_may_begin_or_end_in_the_middle(llama, ids, tier, inside_first):
    loaded, profile = llama
    inside, outside = torch.inference_mode, torch.no_grad
    modes = (inside, outside) if inside_first else (outside, inside)
    profile.codecs.clear()
    with modes[0]():
        cache = SpectralCache(loaded.model, profile, tier=tier, background=False, max_bytes=10**9)
        loaded.model(input_ids=ids[:, :600], past_key_values=cache)
    with modes[1]():
        found = loaded.model(input_ids=ids[:, 600:640], past_key_values=cache).logits
        cache.crop(-20)
        cache.reorder_cache(torch.tensor([0]))
        cache.pack()
    with outside():
        loaded.model(input_ids=ids[:, 620:660], past_key_values=cache)
        other = SpectralCache(loaded.model, profile, tier=tier, background=False)
        loaded.model(input_ids=ids[:, :600], past_key_values=other)
        expected = loaded.model(input_ids=ids[:, 600:640], past_key_values=other).logits
    assert torch.equal(found, expected)
    profile.codecs.clear()


PACK_SURROUNDINGS = SURROUNDINGS | {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "low precision products": low_precision_products,
}


@pytest.mark.parametrize("name", PACK_SURROUNDINGS)
def test_packets_are_the_same_bytes_in_all_surroundings(llama, ids, name):
    loaded, profile = llama
    expected = bytes(pack_prompt(loaded.model, profile, ids)[0].data)
    plain = unpack_cache(loaded.model, profile, pack_prompt(loaded.model, profile, ids)[0])
    cache = SpectralCache(loaded.model, profile, tier="hot")
    with torch.no_grad():
        loaded.model(input_ids=ids, past_key_values=cache)
    repacked = bytes(cache.pack()[0].data)
    profile.codecs.clear()
    with PACK_SURROUNDINGS[name]():
        packet = pack_prompt(loaded.model, profile, ids)[0]
        assert bytes(packet.data) == expected
        dense = unpack_cache(loaded.model, profile, packet)
        assert bytes(cache.pack()[0].data) == repacked
        again = SpectralCache.unpack(loaded.model, profile, packet)
        copy = SpectralCache.unpack(loaded.model, profile, packet, background=False)
    for mine, theirs in zip(dense.layers, plain.layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys) and not mine.keys.is_inference()
    with torch.no_grad():
        one = loaded.model(input_ids=ids[:, :1], past_key_values=again).logits
        assert torch.equal(one, loaded.model(input_ids=ids[:, :1], past_key_values=copy).logits)
    profile.codecs.clear()
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("tier", TIERS)
def test_a_training_model_keeps_its_mode_and_its_dropout(ids, tier):
    model, profile = random_model(attention_dropout=0.3).train(), profile_of("llama")[1]
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    cache = SpectralCache(model, profile, tier=tier, background=False)
    assert [m.training for m in model.modules()] == modes
    plain = random_model()
    steady = SpectralCache(plain, profile, tier=tier, background=False)
    with torch.no_grad():
        for part in (ids[:, :600], ids[:, 600:608]):
            dropped = model(input_ids=part, past_key_values=cache).logits
            kept = plain(input_ids=part, past_key_values=steady).logits
    assert not close(dropped, kept, 0.02)
    model.eval()
    again = SpectralCache(model, profile, tier=tier, background=False)
    with torch.no_grad():
        for part in (ids[:, :600], ids[:, 600:608]):
            found = model(input_ids=part, past_key_values=again).logits
    assert torch.equal(found, kept)


def test_threads_leave_the_products_as_their_caller_set_them():
    """The setting is one for all threads: whoever comes and goes in whatever order, it is exact inside and as before outside."""
    inside, failures = threading.Barrier(4), []

    def work(first):
        with own_arithmetic():
            failures.extend(p.fp32_precision for p in PRODUCTS if p.fp32_precision != "ieee")
            inside.wait(timeout=20)
            time.sleep(0.01 * first)
            failures.extend(p.fp32_precision for p in PRODUCTS if p.fp32_precision != "ieee")

    with low_precision_products():
        before = [p.fp32_precision for p in PRODUCTS]
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert [p.fp32_precision for p in PRODUCTS] == before and not failures
    default = [p.fp32_precision for p in PRODUCTS]
    with own_arithmetic():
        assert [p.fp32_precision for p in PRODUCTS] == default
