"""Sinks and window at 8 bits: the KL that the harness measures, half the bytes, and no drift whatever is done to the cache."""

import copy
import json

import pytest
import torch
from conftest import profile_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from spectralquant import SpectralCache
from spectralquant.cache.hybrid import HybridCacheManager
from spectralquant.cache.persist.snapshot_file import content_sha256
from spectralquant.cache.tokens.held import RoundedTokens
from spectralquant.codec.exact import int8_round_trip
from spectralquant.errors import InputError
from spectralquant.evaluation.measure import Measurement
from spectralquant.evaluation.streaming import stream_window
from spectralquant.geometry import BLOCK, SINKS
from spectralquant.methods.coding.spectral import spectral_from_profile
from spectralquant.methods.context import MethodContext
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize


def text_ids(loaded, tokens):
    return tokenize(loaded.tokenizer, load_text("builtin:stdlib"), 2000).windows(tokens, 1)[0]


def filled(tokens=700, step=BLOCK, architecture="llama", kind=SpectralCache, **options):
    loaded, profile = profile_of(architecture)
    cache = kind(loaded.model, profile, **{"tier": "cold", "background": False, "exact_bits": 8, **options})
    ids = torch.randint(5, 500, (1, tokens), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = [
            loaded.model(input_ids=ids[:, i : i + step], past_key_values=cache).logits for i in range(0, tokens, step)
        ]
    return loaded, cache, ids, torch.cat(logits, dim=1)


def streamed_kl(model, cache, ids):
    exact, total = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1), 0.0
    for start in range(0, len(ids), BLOCK):
        coded = model(input_ids=ids[None, start : start + BLOCK], past_key_values=cache).logits[0].log_softmax(-1)
        here = exact[start : start + BLOCK]
        kl = (here.exp() * (here - coded)).sum(1)
        total += kl[: len(ids) - 1 - start].sum().item()
    return total / (len(ids) - 1)


@torch.no_grad()
@pytest.mark.parametrize("tier", ["cold", "warm", "hot"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_streaming_kl_and_bytes_are_those_of_the_harness(architecture, tier):
    """The method as `sq compare spectral:tier=…,exact_bits=…` makes it, against the cache with the same options."""
    loaded, profile = profile_of(architecture)
    g, ids = loaded.geometry, text_ids(loaded, 7 * BLOCK)
    kl, bytes_of_exact, measured = {}, {}, {}
    for bits in (16, 8):
        method = spectral_from_profile(MethodContext(loaded, profile), tier=tier, exact_bits=bits)
        found = stream_window(loaded.model, g, ids, [method])[0]
        row = Measurement(method.name, method.options, method.exact_bits, [found])
        measured[bits] = row.held_bytes(g) - found.coded_bytes
        cache = SpectralCache(loaded.model, profile, tier=tier, background=False, exact_bits=bits)
        kl[bits] = streamed_kl(loaded.model, cache, ids)
        assert kl[bits] == pytest.approx(found.kl / found.tokens, rel=0.02)
        stats = cache.stats()
        received = 4 * sum(layer.received.numel() for layer in cache.layers if layer.received is not None)
        bytes_of_exact[bits] = stats.exact_bytes - received - (0 if cache.state.ids is None else 4 * len(ids))
    assert kl[8] != kl[16], "the window was really rounded"
    vectors = bytes_of_exact[16] / (4 * g.head_dim)  # a float32 model
    assert bytes_of_exact[8] == vectors * (g.head_dim + 2)
    assert vectors >= 2 * g.kv_heads * (SINKS + BLOCK), "of one layer at least"
    assert measured[16] - measured[8] == vectors * (g.head_dim - 2), "numbers of 16 bits against 8 and a scale a vector"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["new", "rest", "cut", "back", "join", "select"]), st.integers(0, 9)), max_size=12
    )
)
def test_codes_are_cut_and_joined_and_never_made_again(steps):
    """Against plain numbers of which each was rounded once; bfloat16, where rounding twice would show."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda rows, n: torch.randn(rows, 2, n, 8, generator=generator).bfloat16()  # noqa: E731
    plain, fresh = draw(2, 0), 0
    held = RoundedTokens.of(plain)
    for name, n in steps:
        rows, total = plain.shape[0], plain.shape[2]
        if name == "new":
            x = draw(rows, n)
            held, plain, fresh = held.extended(x), torch.cat([plain, x], 2), fresh + n
        elif name == "rest":
            parts = (plain[:, :, : total - fresh], int8_round_trip(plain[:, :, total - fresh :]))
            held, plain, fresh = held.rested(), torch.cat(parts, 2), 0
        elif name == "cut":
            first, last = min(n, total), max(min(n, total), total - n // 2)
            held, plain = held.cut(first, last), plain[:, :, first:last]
            fresh = max(0, last - max(first, total - fresh))
        elif name == "back":
            x = draw(rows, n)
            held, plain = held.preceded_by(x), torch.cat([int8_round_trip(x), plain], 2)
        elif name == "join":
            x = draw(rows, n)
            held = RoundedTokens.of(x).rested().followed_by(held)
            plain = torch.cat([int8_round_trip(x), plain], 2)
        else:
            index = torch.tensor([n % rows, 0])
            held, plain = held.select(index), plain[index]
        assert held.shape == plain.shape and torch.equal(held.dense(), plain)
        assert held.new.shape[2] == fresh, "what a pass brought stays as it came until the pass ends"


def test_what_a_pass_reads_of_itself_is_exact():
    """One pass over a short prompt reads nothing rounded; the next one does."""
    loaded, cache, ids, logits = filled(100, 100)
    with torch.no_grad():
        whole = loaded.model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(logits, whole, atol=1e-5)
    assert (
        cache.layers[0].parts()["keys.codes"].dtype == torch.int8 and cache.layers[0].parts()["keys.new"].numel() == 0
    )


@torch.no_grad()
def test_copies_files_crops_and_beams_go_on_alike(tmp_path):
    loaded, cache, ids, _ = filled()
    cache.save(tmp_path / "cache.safetensors")
    read = SpectralCache.load(tmp_path / "cache.safetensors", loaded.model, cache.profile)
    twin, beam = copy.deepcopy(cache), copy.deepcopy(cache)
    beam.reorder_cache(torch.tensor([0, 0]))
    assert read.options["exact_bits"] == 8
    held = [cache.stats().exact_bytes, read.stats().exact_bytes, twin.stats().exact_bytes]
    assert len(set(held)) == 1, "rounded tokens stay rounded"
    nxt = ids[:, :3]
    expected = loaded.model(input_ids=nxt, past_key_values=cache).logits
    for other in (read, twin):
        assert torch.equal(loaded.model(input_ids=nxt, past_key_values=other).logits, expected)
    both = loaded.model(input_ids=nxt.expand(2, -1), past_key_values=beam).logits
    assert torch.allclose(both, expected.expand(2, -1, -1), atol=1e-5)
    cache.crop(-3)
    for a, b in zip(cache.layers, beam.layers, strict=True):
        assert torch.equal(a.keys[0], b.keys[0, :, :-3])
    cache.crop(-400)  # into a block, which becomes exact again, and is held at 8 bits
    loaded.model(input_ids=nxt, past_key_values=cache)
    assert cache.get_seq_length() == 303 and cache.layers[0].parts()["keys.new"].numel() == 0
    cache.crop(-303)
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 4}, {"prefill_chunk_size": 97}],
    ids=["greedy", "beams", "prompt lookup", "chunked"],
)
def test_every_way_of_generating_leaves_all_tokens_at_8_bits(options, dtype):
    loaded, profile = profile_of("llama")
    model = copy.deepcopy(loaded.model).to(dtype)
    rows = 1 if "prompt_lookup_num_tokens" in options else 2
    ids = torch.randint(5, 500, (rows, 300), generator=torch.Generator().manual_seed(0))
    cache = SpectralCache(model, profile, tier="cold", exact_bits=8)
    given = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **options}
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **given)
    assert out.shape[0] == rows and out.shape[1] == 312 and cache.coded_tokens == 124
    for layer in cache.layers:
        parts = layer.parts()
        assert layer.keys.dtype == dtype and parts["keys.new"].numel() == parts["sink_values.new"].numel() == 0
        assert parts["keys.codes"].shape[2] + 128 == cache.get_seq_length() and parts["sink_keys.codes"].shape[2] == 4


@torch.no_grad()
def test_a_failed_pass_is_taken_back():
    loaded, cache, ids, _ = filled()
    before = [layer.keys for layer in cache.layers]

    def fail(*_):
        raise RuntimeError("stop")

    handle = loaded.model.model.layers[-1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        loaded.model(input_ids=ids[:, :5], past_key_values=cache)
    handle.remove()
    assert all(torch.equal(a, layer.keys) for a, layer in zip(before, cache.layers, strict=True))


def test_packets_of_such_a_cache_hold_the_same_codes():
    loaded, cache, _, _ = filled()
    packet = cache.pack()[0]
    assert packet.header.exact_dtype == "int8"
    back = SpectralCache.unpack(loaded.model, cache.profile, [packet], exact_bits=8)
    for a, b in zip(cache.layers, back.layers, strict=True):
        own, other = a.parts(), b.parts()
        assert all(torch.equal(own[name], other[name]) for name in own if name != "received")
    plain = SpectralCache.unpack(loaded.model, cache.profile, [packet])
    assert plain.layers[0].keys.dtype == loaded.model.dtype and torch.equal(plain.layers[0].keys, cache.layers[0].keys)


@pytest.mark.parametrize("tier", ["warm", "hot"])
def test_other_coded_tiers_and_long_exact_stretches_hold_it_too(tier):
    _, cache, _, _ = filled(tier=tier)
    _, wide, _, _ = filled(tier=tier, exact_bits=16)
    assert cache.stats().exact_bytes < 0.35 * wide.stats().exact_bytes, "of a float32 model"
    _, hybrid, _, logits = filled(kind=HybridCacheManager, tier=tier, crossover=4096, below="h2o")
    assert logits.isfinite().all() and hybrid.layers[0].parts()["keys.codes"].shape[2] == 700


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"tier": "exact"},
            "^8 bits round the first and the newest tokens, and the exact tier keeps every bit. Give a profile",
        ),
        ({"exact_bits": 4}, "exact_bits=4 is not one of 8, 16"),
        ({"exact_bits": True}, "exact_bits=True is not one of 8, 16"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    loaded, profile = profile_of("llama")
    with pytest.raises(InputError, match=message):
        SpectralCache(loaded.model, profile, **{"tier": "cold", "exact_bits": 8, **options})
    with pytest.raises(InputError, match="the exact tier keeps every bit"):
        SpectralCache(loaded.model, exact_bits=8)


@pytest.mark.parametrize(
    "name, change",
    [
        ("0.keys.codes", lambda t: t.float()),
        ("0.keys.scales", lambda t: t.expand(*t.shape[:-1], 16).contiguous()),
        ("0.values.new", lambda t: t[..., :8].contiguous()),
        ("0.sink_keys.codes", None),
    ],
)
def test_a_file_whose_codes_do_not_fit_is_refused(tmp_path, name, change):
    loaded, cache, _, _ = filled(300)
    file = tmp_path / "cache.safetensors"
    cache.save(file)
    with safe_open(file, "pt") as handle:
        meta, tensors = handle.metadata(), {n: handle.get_tensor(n) for n in handle.keys()}  # noqa: SIM118
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])
    assert json.loads(meta["facts"])["options"]["exact_bits"] == 8
    save_file(tensors, file, {**meta, "sha256": content_sha256(meta["facts"], tensors)})
    with pytest.raises(InputError, match=r"cache\.safetensors"):
        SpectralCache.load(file, loaded.model, cache.profile)
