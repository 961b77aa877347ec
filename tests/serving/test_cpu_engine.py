"""vLLM's CPU build with the tier: what is restored is what was computed, whatever happens to the store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from engines_for_tests import Serving, fills, shared, texts

from spectralquant.integrations.chunks import ChunkShape, LosslessChunks
from spectralquant.integrations.serve_check.compare import compare
from spectralquant.integrations.serve_check.machine import engine_arguments
from spectralquant.integrations.store.record import DIGEST_BYTES, HEAD
from spectralquant.integrations.vllm.cpu_pages import learn_pages
from spectralquant.models.builtin.folder import builtin_folder

pytestmark = [pytest.mark.slow, pytest.mark.model]
PROMPTS = shared()
FULL_CHUNKS = 4  # of 524 tokens
PROFILE = os.environ.get("SQ_SERVING_PROFILE")


@pytest.fixture(scope="module")
def model() -> Path:
    engine_arguments(1, True)  # environment variables of the CPU build, for all engines of these tests
    return builtin_folder("builtin:smollm2-135m")


@pytest.fixture(scope="module")
def exact(model, tmp_path_factory):
    """Texts without the tier."""
    serving = Serving(tmp_path_factory.mktemp("exact"), model)
    report = serving.run("exact", texts(PROMPTS), codec=None)
    assert report["steps"]["texts"]["cached_tokens"] == [0, 0, 0] and report["tally"] is None
    return report["steps"]["texts"]["tokens"], serving.numbers("exact")


@pytest.fixture(scope="module")
def filled(model, tmp_path_factory):
    serving = Serving(tmp_path_factory.mktemp("filled"), model)
    serving.run("fill", fills(PROMPTS))
    return serving


@pytest.fixture
def serving(filled, model, tmp_path):
    """A copy of the filled store."""
    fresh = Serving(tmp_path, model)
    for path in filled.files():
        copy = fresh.store / path.relative_to(filled.store)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return fresh


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pages_are_read_as_the_engine_writes_them_not_as_their_shape_says(dtype):
    heads, block, dim = 3, 128, 64
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    keys, values = torch.randn(2, 2 * block, heads, dim).to(dtype)
    page = torch.zeros(2, heads, 2 * block, dim, dtype=dtype)
    halves = page.chunk(2, dim=2)
    isa = _get_attn_isa(dtype, block, dim)
    ops.cpu_attn_reshape_and_cache(
        keys, values, *halves, torch.arange(2 * block), isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto"
    )
    rules = learn_pages(heads, block, dim, dtype)
    read = rules.read(page.flatten(1))
    assert torch.equal(read[0], keys.transpose(0, 1)) and torch.equal(read[1], values.transpose(0, 1))
    assert torch.equal(rules.write(*read), page.flatten(1))
    naive = page.view(2, heads, block, 2 * dim)[..., :dim].transpose(0, 1).flatten(1, 2)
    assert not torch.equal(naive, keys.transpose(0, 1))


def test_stored_keys_are_the_models_own(filled, model):
    """Against transformers in float32; a wrong reading of the pages is far off."""
    from transformers import AutoModelForCausalLM, DynamicCache

    from spectralquant.integrations.serve_check.child import LAST_PART
    from spectralquant.models.load import load_model
    from spectralquant.text.read import load_text

    tokenizer = load_model("builtin:smollm2-135m", device="cpu").tokenizer
    ids = [i for t in load_text("builtin:pydoc") for i in tokenizer(t, add_special_tokens=False)["input_ids"]]
    prefix = torch.tensor([ids[int(LAST_PART * len(ids)) :][:128]])
    cache = DynamicCache()
    with torch.no_grad():
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(prefix, past_key_values=cache)
    shape = ChunkShape((3,) * 30, (64,) * 30, torch.bfloat16)
    chunks = []
    for path in filled.files():
        data = path.read_bytes()
        key_bytes = HEAD.unpack_from(data)[3]
        chunks += LosslessChunks().decode([data[HEAD.size + key_bytes : -DIGEST_BYTES]], shape)
    first = next(chunk for chunk in chunks if chunk.start == 0)
    for layer, (key, value) in enumerate(zip(first.keys, first.values, strict=True)):
        for ours, theirs in ((key, cache.layers[layer].keys[0]), (value, cache.layers[layer].values[0])):
            assert (ours.float() - theirs).norm() < 0.05 * theirs.norm()


def test_a_second_process_restores_every_full_chunk_and_writes_the_same_text(serving, exact):
    report = serving.run("restore", texts(PROMPTS))
    step, tally = report["steps"]["texts"], report["tally"]
    assert step["cached_tokens"] == [512] * 3 and step["tokens"] == exact[0]
    assert tally["lookups"] == tally["hits"] == 3 * FULL_CHUNKS and tally["saves"] == tally["damaged"] == 0
    assert compare(exact[1], serving.numbers("restore"), exact[0], step["tokens"]).kl_nats < 1e-3


@pytest.mark.parametrize("cut", [0, 1, 1000, -1], ids=["empty", "one byte", "half", "one byte short"])
def test_damaged_files_are_computed_again_and_stored_again(serving, exact, cut):
    for path in serving.files()[::2]:
        path.write_bytes(path.read_bytes()[:cut])
    report = serving.run("restore", texts(PROMPTS))
    assert report["steps"]["texts"]["tokens"] == exact[0] and report["tally"]["damaged"] > 0


def test_other_bytes_under_the_same_names_are_computed_again(serving, exact):
    files = serving.files()
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    report = serving.run("restore", texts(PROMPTS))
    assert report["steps"]["texts"]["tokens"] == exact[0] and report["tally"]["hits"] == 0


def test_files_that_vanish_while_it_serves(serving, exact):
    """Between lookups and loads of a running engine."""
    process = serving.begin("restore", texts(shared(8)))
    while process.poll() is None:
        for path in serving.files():
            path.unlink(missing_ok=True)
    assert process.returncode == 0
    assert serving.report("restore")["steps"]["texts"]["tokens"][:3] == exact[0]


def test_an_engine_killed_while_saving_leaves_a_store_that_serves(model, tmp_path, exact):
    serving = Serving(tmp_path, model)
    serving.kill_while_saving("killed", fills(PROMPTS))
    report = serving.run("next", [*fills(PROMPTS), *texts(PROMPTS)])
    assert report["steps"]["texts"]["tokens"] == exact[0]
    assert not list(serving.store.rglob("*.tmp"))


def test_two_engines_on_one_store(model, tmp_path, exact):
    serving = Serving(tmp_path, model)
    steps = [*fills(PROMPTS), *texts(PROMPTS)]
    engines = [serving.begin(name, steps) for name in ("one", "two")]
    assert [engine.wait(timeout=500) for engine in engines] == [0, 0]
    for name in ("one", "two"):
        assert serving.report(name)["steps"]["texts"]["tokens"] == exact[0]
        assert serving.report(name)["tally"]["damaged"] == 0
    assert len(serving.files()) == len({path.name for path in serving.files()})


def test_a_store_that_is_full_evicts_and_serves_on(model, tmp_path, exact):
    serving = Serving(tmp_path, model)
    budget = 8_000_000  # two chunks of 2.9 MB
    report = serving.run("small", [*fills(PROMPTS), *texts(PROMPTS)], budget=budget)
    assert report["steps"]["texts"]["tokens"] == exact[0]
    assert report["usage"][1] <= budget and report["tally"]["evicted"] > 0


@pytest.mark.skipif(PROFILE is None, reason="SQ_SERVING_PROFILE is not set (make test-serving sets it)")
def test_the_cold_profile_restores_at_a_small_kl_and_a_twentieth_of_the_bytes(model, tmp_path):
    serving, prompts = Serving(tmp_path, model), shared(20, 1000)
    exact = serving.run("exact", texts(prompts, 8), codec=None)
    stored = serving.run("fill", fills(prompts), codec=PROFILE)["tally"]
    report = serving.run("restore", texts(prompts, 8), codec=PROFILE)
    assert report["tally"]["hits"] == report["tally"]["lookups"] == 20 * 8
    tokens = [r["steps"]["texts"]["tokens"] for r in (exact, report)]
    assert compare(serving.numbers("exact"), serving.numbers("restore"), *tokens).kl_nats <= 0.02
    on_disk = sum(path.stat().st_blocks * 512 for path in serving.files())
    assert stored["raw_bytes"] / on_disk >= 20
