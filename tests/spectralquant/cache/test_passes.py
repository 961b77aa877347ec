"""A model without a spectral cache in use behaves as if this library were not there, and a failed pass leaves no trace."""

import copy
import gc
import io
import subprocess
import sys
import threading

import pytest
import torch
from conftest import profile_of, random_model
from torch import nn
from transformers import DynamicCache

from spectralquant import SpectralCache
from spectralquant.cache.hybrid import HybridCacheManager
from spectralquant.errors import InputError, UnsupportedModelError

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
TIERS = ["exact", "hot", "warm", "cold"]


def ids(tokens: int, seed: int = 0, rows: int = 1) -> torch.Tensor:
    return torch.randint(5, 500, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def hooks(model: nn.Module) -> dict[str, int]:
    """Modules that have hooks. transformers sets its own, for good, when attentions are asked for."""
    own = {name: sum(len(getattr(m, kind)) for kind in HOOKS) for name, m in model.named_modules()}
    return {name: count for name, count in own.items() if count}


def cache_of(model, tier: str, **options) -> SpectralCache:
    profile = None if tier == "exact" else profile_of("llama")[1]
    return SpectralCache(model, profile, tier=tier, background=False, **options)


@pytest.fixture
def model():
    return random_model("llama")


def prefill(model, cache, tokens: int = 400, **options):
    with torch.no_grad():
        return model(ids(tokens), past_key_values=cache, logits_to_keep=1, **options).logits


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("tier", TIERS)
def test_a_model_is_as_it_was(model, tier, implementation):
    model.set_attn_implementation(implementation)
    before = hooks(model)
    model.train()
    model.eval()
    with torch.no_grad():
        expected = model(ids(50)).logits
    cache = cache_of(model, tier)
    assert model.config._attn_implementation == implementation, "having a cache changes nothing"
    prefill(model, cache)
    model.generate(ids(20), past_key_values=DynamicCache(config=model.config), max_new_tokens=2, pad_token_id=0)
    assert model.config._attn_implementation == implementation
    assert not any(m.training for m in model.modules())
    with torch.no_grad():
        assert torch.equal(model(ids(50)).logits, expected)
    del cache
    gc.collect()
    assert hooks(model) == before


def test_output_attentions_before_with_and_after_a_cache(model):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        before = model(ids(40), output_attentions=True).attentions
        cache = cache_of(model, "hot")
        beside = model(ids(40), output_attentions=True).attentions
        prefill(model, cache)
        between = model(ids(40), output_attentions=True).attentions
        del cache
        after = model(ids(40), output_attentions=True).attentions
    for other in (beside, between, after):
        assert all(torch.equal(a, b) for a, b in zip(before, other, strict=True))


def test_two_caches_of_one_model_take_turns(model):
    alone = [cache_of(model, "hot"), cache_of(model, "warm")]
    expected = []
    for cache in alone:
        prefill(model, cache)
        expected.append(torch.stack([model(ids(1, i), past_key_values=cache).logits for i in range(3)]))
    turns = [cache_of(model, "hot"), cache_of(model, "warm")]
    for cache in turns:
        prefill(model, cache)
    found = [[], []]
    for i in range(3):
        for cache, logits in zip(turns, found, strict=True):
            logits.append(model(ids(1, i), past_key_values=cache).logits)
    assert all(torch.equal(torch.stack(f), e) for f, e in zip(found, expected, strict=True))
    first = turns.pop(0)
    del first, alone, cache
    gc.collect()
    assert model.config._attn_implementation == "sdpa"
    assert hooks(model), "the other cache still needs them"
    turns.clear()
    gc.collect()
    assert not hooks(model)


class BrokenError(Exception):
    pass


def broken(module, kind):
    """Make `module` fail once with an exception of `kind`."""

    def fail(*_):
        handle.remove()
        raise kind

    handle = module.register_forward_pre_hook(fail)


@pytest.mark.parametrize("kind", [BrokenError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["first mlp", "last attention", "head"])
@pytest.mark.parametrize("tier", TIERS)
def test_a_pass_that_fails_leaves_no_trace(model, tier, where, kind):
    cache = cache_of(model, tier)
    prefill(model, cache)
    other = copy.deepcopy(cache)
    layers = model.model.layers
    module = {"first mlp": layers[0].mlp, "last attention": layers[-1].self_attn, "head": model.lm_head}[where]
    broken(module, kind)
    with pytest.raises(kind), torch.no_grad():
        model(ids(140, 1), past_key_values=cache)
    assert cache.get_seq_length() == 400
    assert cache.stats().tokens == 400
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        plain = model(ids(30)).logits
        found = model(ids(5, 2), past_key_values=cache).logits
        expected = model(ids(5, 2), past_key_values=other).logits
        assert torch.equal(model(ids(30)).logits, plain)
    assert torch.equal(found, expected)
    assert [layer.get_seq_length() for layer in cache.layers] == [405] * 3


@pytest.mark.parametrize("kind", [BrokenError, KeyboardInterrupt])
def test_a_first_pass_that_fails_leaves_an_empty_cache(model, kind):
    cache = cache_of(model, "hot")
    broken(model.model.layers[1].mlp, kind)
    with pytest.raises(kind), torch.no_grad():
        model(ids(400, rows=2), past_key_values=cache)
    assert cache.get_seq_length() == 0
    assert torch.equal(prefill(model, cache), prefill(model, cache_of(model, "hot"))), "another batch size is fine too"


@pytest.mark.parametrize("kind", [BrokenError, KeyboardInterrupt])
def test_reset_after_a_failed_pass(model, kind):
    cache = cache_of(model, "cold")
    prefill(model, cache)
    broken(model.model.layers[2].mlp, kind)
    with pytest.raises(kind), torch.no_grad():
        model(ids(10), past_key_values=cache)
    cache.reset()
    assert torch.equal(prefill(model, cache), prefill(model, cache_of(model, "cold")))


def test_a_hybrid_cache_after_a_failed_pass(model):
    caches = [HybridCacheManager(model, profile_of("llama")[1], below="h2o", crossover=900) for _ in range(2)]
    for cache in caches:
        prefill(model, cache)
    broken(model.model.layers[2].mlp, BrokenError)
    with pytest.raises(BrokenError), torch.no_grad():
        model(ids(10), past_key_values=caches[0])
    both = [torch.stack([model(ids(1, i), past_key_values=c).logits for i in range(3)]) for c in caches]
    assert torch.equal(*both)


def test_an_interrupted_model_is_as_it_was_once_its_cache_is_gone(model):
    cache = cache_of(model, "hot")
    broken(model.model.layers[1].mlp, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        model(ids(400), past_key_values=cache)
    del cache
    gc.collect()
    assert model.config._attn_implementation == "sdpa"
    assert not hooks(model)


def test_a_cache_interrupted_while_it_changed_is_refused(model):
    cache = cache_of(model, "hot")
    prefill(model, cache)
    cache.layers[1].keep_newest_but(3)
    with pytest.raises(InputError, match="reset"), torch.no_grad():
        model(ids(1), past_key_values=cache)
    cache.reset()
    prefill(model, cache)
    assert cache.coded_tokens


def test_threads_with_and_without_a_cache(model):
    """Passes without a cache run beside ones that have one, on the model's own attention."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(ids(60), output_attentions=True)
    cache, wrong, stop = cache_of(model, "hot"), [], threading.Event()

    def plain():
        while not stop.is_set():
            with torch.no_grad():
                out = model(ids(60), output_attentions=True)
            same = torch.allclose(out.logits, expected.logits, atol=1e-5)
            if not same or any(a is None for a in out.attentions):
                wrong.append(out)

    others = [threading.Thread(target=plain) for _ in range(2)]
    for thread in others:
        thread.start()
    prefill(model, cache)
    for i in range(40):
        with torch.no_grad():
            model(ids(1, i), past_key_values=cache)
    stop.set()
    for thread in others:
        thread.join()
    assert not wrong
    assert cache.get_seq_length() == 440
    assert cache.stats().spent.in_place_reads == 40 * 3
    assert model.config._attn_implementation == "eager"


def test_a_copy_of_a_model_that_has_a_cache_is_a_plain_model(model):
    cache = cache_of(model, "hot")
    other = copy.deepcopy(model)
    prefill(model, cache)
    before = cache.get_seq_length()
    with torch.no_grad():
        assert torch.equal(other(ids(60)).logits, model(ids(60)).logits)
        mine = cache_of(other, "hot")
        assert torch.equal(prefill(other, mine), prefill(model, cache_of(model, "hot")))
    assert cache.get_seq_length() == before


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.slow
def test_a_pickled_model_needs_nothing_of_ours(model, alive, tmp_path):
    cache = cache_of(model, "hot")
    prefill(model, cache)
    if not alive:
        del cache
        gc.collect()
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch; sys.modules['spectralquant'] = None\n"
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
        "print(model.config._attn_implementation, model(torch.arange(9)[None]).logits.shape)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["sdpa", "torch.Size([1,", "9,", "512])"]


def test_save_pretrained_beside_a_cache(model, tmp_path):
    cache = cache_of(model, "hot")
    prefill(model, cache)
    model.save_pretrained(tmp_path)
    assert "spectralquant" not in (tmp_path / "config.json").read_text()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    assert b"spectralquant" not in buffer.getvalue()


def test_a_cache_of_another_model_is_refused(model):
    cache = cache_of(model, "hot")
    other = copy.deepcopy(model)
    with pytest.raises(UnsupportedModelError, match="another model"), torch.no_grad():
        other(ids(300), past_key_values=cache)
    prefill(model, cache)
    assert cache.coded_tokens == 252


def test_the_inner_model_can_be_called_by_itself(model):
    """`AutoModel` users, and pipelines that apply the head themselves."""
    inner = cache_of(model, "hot")
    with torch.no_grad():
        model.model(ids(400), past_key_values=inner)
        found = model.lm_head(model.model(ids(1), past_key_values=inner).last_hidden_state)
    outer = cache_of(model, "hot")
    prefill(model, outer)
    assert inner.coded_tokens == outer.coded_tokens == 252
    assert torch.equal(found, model(ids(1), past_key_values=outer).logits)


class Wrapper(nn.Module):
    """What serving code and adapters do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_a_wrapped_model_runs_with_the_cache_of_the_inner_one(model):
    cache = cache_of(model, "hot")
    prefill(Wrapper(model), cache)
    assert cache.coded_tokens == 252
