"""Rows of the hot tier in an engine's pages, and attention that reads them; no engine needed."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from conftest import profile_of, random_model, small_tokenizer
from torch.nn import functional

from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.targets import parse_target
from spectralquant.codec.hot.codec import HotCodec
from spectralquant.errors import InputError
from spectralquant.geometry import SINKS
from spectralquant.integrations.vllm.hot.attend import attend
from spectralquant.integrations.vllm.hot.profile import pages_profile
from spectralquant.integrations.vllm.hot.rows import HotRows
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

BLOCK = 32


@functools.cache
def equal_rows():
    """A profile for serving with a hot tier."""
    model, tokenizer = random_model(), small_tokenizer()
    loaded = LoadedModel("small", model, tokenizer, probe_geometry(model))
    settings = CalibrationSettings(
        steps=6,
        window=384,
        predict="none",
        purpose="serving",
        tiers=("hot",),
        held_out_windows=1,
        held_out_window=512,
        targets={"hot": parse_target("ratio=3")},
    )
    return calibrate_model(loaded, tokenize(tokenizer, load_text("builtin:pydoc"), 8_000), settings)


def filled(rows, layer, tokens, order):
    """Pages of a text whose pages stand in `order`, its keys and values."""
    g = rows.geometry
    generator = torch.Generator().manual_seed(layer)
    keys, values = torch.randn(2, tokens, g.kv_heads, g.head_dim, generator=generator).to(rows.dtype)
    pages = torch.full((8, rows.block, rows.row_bytes), 255, dtype=torch.uint8)
    slots = torch.cat([page * rows.block + torch.arange(rows.block) for page in order])[:tokens]
    for part in torch.arange(tokens).split(19):  # as an engine writes: some tokens a step
        rows.write(layer, pages, slots[part], keys[part], values[part])
    return pages, keys, values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pages_hold_codes_and_exact_first_tokens(dtype):
    profile = profile_of("llama")[1]
    rows = HotRows(profile, BLOCK, dtype)
    codec = HotCodec(profile.tier("hot"), profile.geometry)
    for layer in range(profile.geometry.layers):
        pages, keys, values = filled(rows, layer, 3 * BLOCK, [5, 2, 7])
        read = rows.read(layer, pages[[5, 2, 7]])
        for x, back, m in zip((keys, values), read, codec.layers[layer], strict=True):
            wanted = m.dense(m.page(x.flatten(1).float())[None]).view_as(back)
            coded = torch.arange(3 * BLOCK) % BLOCK >= SINKS
            assert torch.allclose(back[coded], wanted[coded], atol=1e-5)
            assert torch.equal(back[~coded].to(dtype), x[~coded])
        assert bool((pages[[0, 1, 3, 4, 6]] == 255).all())


def test_slots_that_are_padding_write_nothing():
    rows = HotRows(profile_of("llama")[1], BLOCK, torch.float32)
    pages = torch.zeros(2, BLOCK, rows.row_bytes, dtype=torch.uint8)
    x = torch.randn(3, 2, 16)
    rows.write(0, pages, torch.tensor([-1, -1, -1]), x, x)
    assert not pages.any()


def test_attention_reads_old_tokens_from_pages_and_new_ones_exactly():
    rows = HotRows(profile_of("llama")[1], BLOCK, torch.float32)
    g, tokens, order = rows.geometry, 75, [3, 0, 6]
    pages, keys, values = filled(rows, 1, tokens, order)
    other, more, others = filled(rows, 1, 20, [5])
    pages[5] = other[5]
    query = torch.randn(11 + 20, g.heads, g.head_dim)
    new = tuple(torch.cat([a[64:], b]) for a, b in ((keys, more), (values, others)))
    table = torch.tensor([[3, 0, 6], [5, 0, 0]], dtype=torch.int32)
    out = attend(rows, 1, pages, query, new, [0, 11, 31], [75, 20], table, 0.25)
    old = rows.read(1, pages[order])
    for some, k, v, length in (
        (slice(0, 11), torch.cat([old[0][:64], keys[64:]]), torch.cat([old[1][:64], values[64:]]), 75),
        (slice(11, 31), more, others, 20),
    ):
        q = query[some].transpose(0, 1)
        k, v = (x.repeat_interleave(g.group, dim=1).transpose(0, 1) for x in (k, v))
        mask = torch.ones(q.shape[1], length, dtype=torch.bool).tril(length - q.shape[1])
        wanted = functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=0.25)[0]
        assert torch.allclose(out[some], wanted.transpose(0, 1), atol=1e-5)


def test_a_profile_for_serving_has_rows_of_one_length():
    profile = equal_rows()
    rows = HotRows(profile, 128, torch.bfloat16)
    sizes = [key.layout.row_bytes + value.layout.row_bytes for key, value in rows.codec.layers]
    assert max(sizes) - min(sizes) <= 3
    assert rows.row_bytes * 3 <= 4 * profile.geometry.layer_width * 1.25
    assert profile.sidecar.tiers["hot"].measured["kl_nats"] > 0


def test_short_pages_are_refused():
    with pytest.raises(InputError, match="--block-size"):
        HotRows(profile_of("llama")[1], 2, torch.float32)


def test_warm_codes_are_not_for_serving():
    with pytest.raises(InputError, match="cold,hot"):
        replace(CalibrationSettings(), purpose="serving", predict="none", tiers=("warm",))


def test_an_engine_loads_a_profile_once(tmp_path):
    equal_rows().save(tmp_path / "hot")
    loaded = pages_profile(str(tmp_path / "hot"))
    assert loaded is pages_profile(str(tmp_path / "hot"))
    assert loaded.geometry == equal_rows().geometry
