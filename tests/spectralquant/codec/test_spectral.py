"""The cold codec on ordinary and on hostile tensors: what shrinks is coded, the rest is kept raw."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles_for_tests import GEOMETRY, random_block, random_codec

from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold import coded_block
from spectralquant.codec.cold.features import TokenFeatures, embedding_projection
from spectralquant.codec.cold.importance import NEUTRAL, ImportanceModel, class_step
from spectralquant.errors import PacketError


def block_of(keys, values=None):
    return KVBlock(keys=keys, values=keys.clone() if values is None else values, start=4)


def test_a_block_decodes_to_within_a_step_inside_the_span():
    codec = random_codec()
    block = random_block(0, 50, 1.0)
    keys, _ = codec.decode(codec.encode(block))
    projector = codec.projectors[0]
    y = projector.project(block.keys.reshape(50, -1), None)
    back = projector.project(keys.reshape(50, -1), None)
    assert (y - back).abs().max() <= 0.5 + 0.02


def test_encoding_is_deterministic():
    assert random_codec().encode(random_block(3, 30, 1.0)) == random_codec().encode(random_block(3, 30, 1.0))


HOSTILE = {
    "zeros": lambda k: torch.zeros_like(k),
    "constant": lambda k: torch.full_like(k, 3.0),
    "outliers of 1e3": lambda k: k.index_fill(0, torch.tensor([1]), 1e3),
    "outliers of 1e12": lambda k: k.index_fill(0, torch.tensor([1]), 1e12),
    "NaN": lambda k: k.index_fill(0, torch.tensor([1]), math.nan),
    "infinity": lambda k: k.index_fill(0, torch.tensor([1]), math.inf),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tensors_are_coded_or_kept_raw_and_never_expand(case):
    codec = random_codec()
    block = block_of(HOSTILE[case](random_block(0, 30, 1.0).keys))
    data = codec.encode(block)
    keys, values = codec.decode(data)
    wide = data[0] == coded_block.RAW32
    assert len(data) <= coded_block.HEADER.size + block.fp16_bytes * (2 if wide else 1)
    if case in ("NaN", "infinity", "outliers of 1e12"):
        assert data[0] in (coded_block.RAW16, coded_block.RAW32)
        assert torch.equal(torch.isnan(keys), torch.isnan(block.keys))
        assert torch.allclose(keys, block.keys, rtol=1e-3, atol=1e-3, equal_nan=True)
    else:
        assert bool(torch.isfinite(keys).all()) and bool(torch.isfinite(values).all())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.floats(1e-6, 1e8), st.integers(0, 1000))
def test_any_scale_round_trips_without_expansion(tokens, scale, seed):
    codec = random_codec()
    block = random_block(seed, tokens, scale)
    data = codec.encode(block)
    keys, values = codec.decode(data)
    assert keys.shape == block.keys.shape and bool(torch.isfinite(values).all())
    assert len(data) <= coded_block.HEADER.size + 2 * block.fp16_bytes


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_packet_errors_only(data):
    with contextlib.suppress(PacketError):
        random_codec().decode(data)


def test_a_header_that_promises_much_allocates_nothing():
    data = coded_block.HEADER.pack(coded_block.SPECTRAL, 0, 65535, 2**32 - 1, 2**32 - 1) + b"x" * 100
    with pytest.raises(PacketError, match="announces"):
        coded_block.split(data, 2 * GEOMETRY.width)


def test_a_block_that_promises_many_tokens_from_few_bytes_is_refused():
    data = coded_block.HEADER.pack(coded_block.SPECTRAL, 0, 65535, 1, 0) + b"\0\0\0\1"
    with pytest.raises(PacketError, match="at most 1024"):
        random_codec().decode(data)


@pytest.mark.parametrize(
    "ids, previous",
    [(None, -1), ([1, 2, 3], -1), ([1, 2, 3], 7), ([70000, 2, 3], 65535)],
    ids=["none", "first", "two bytes", "four bytes"],
)
def test_token_ids_travel(ids, previous):
    import numpy as np

    none = np.zeros(0, np.uint32)
    array = None if ids is None else np.array(ids, np.int64)
    parts = coded_block.BlockParts(coded_block.SPECTRAL, 3, previous, array, np.array([5], np.uint32), none, None)
    back = coded_block.split(coded_block.join(parts), 8)
    assert (back.ids is None) == (ids is None) and back.words.tolist() == [5]
    if ids is not None:
        assert back.ids.tolist() == ids and back.previous_id == previous


def test_features_of_a_token_depend_on_it_and_its_predecessor_only():
    features = TokenFeatures(torch.randn(10, 6, generator=torch.Generator().manual_seed(0)))
    whole = features(torch.tensor([1, 2, 3, 4]), -1)
    part = features(torch.tensor([3, 4]), 2)
    assert torch.equal(whole[2:], part) and bool((whole[0, 6:] == 0).all())


def test_wide_embeddings_are_projected():
    assert embedding_projection(torch.randn(50, 100)) is None
    assert embedding_projection(torch.randn(900, 800)).shape == (800, 768)


def test_importance_classes_halve_the_step_every_two_and_survive_nonsense():
    model = ImportanceModel(torch.tensor([[1.0, 0.0]]), torch.zeros(2))
    features = torch.tensor([[2 * math.log(2)], [-2 * math.log(2)], [1e9], [math.nan]])
    classes = model.classes(features)
    assert classes[:, 0].tolist() == [NEUTRAL - 2, NEUTRAL + 2, 0, NEUTRAL]
    assert class_step(torch.tensor([NEUTRAL, NEUTRAL + 2])).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("span", ["head", "layer", "1", "3", "all"])
def test_a_cache_reads_layer_by_layer_what_any_span_coded(span, small):
    """Layers of several groups, of one group, and of a part of one."""
    from spectralquant.cache.spectral_cache import SpectralCache
    from spectralquant.calibrating.api import calibrate_model
    from spectralquant.calibration.options import CalibrationSettings
    from spectralquant.text.read import load_text
    from spectralquant.text.tokens import tokenize

    text = tokenize(small.tokenizer, load_text("builtin:pydoc"), 4000)
    settings = CalibrationSettings(steps=4, window=384, span=span, held_out_windows=1, held_out_window=384)
    profile = calibrate_model(small, text, settings)
    cache = SpectralCache(small.model, profile, tier="cold", background=False)
    with torch.no_grad():
        small.model(input_ids=text.windows(512)[:1], past_key_values=cache)
    codec = cache.tiers["cold"].codec
    block = cache.state.groups[0].sequences[0][0]
    keys, values = codec.decode(cache.tiers["cold"].to_bytes(block))
    coded = codec.coefficients(cache.tiers["cold"].to_bytes(block))
    for layer in range(small.geometry.layers):
        for whole, part in zip((keys, values), codec.layer(coded, layer), strict=True):
            torch.testing.assert_close(part, whole[:, layer].flatten(1), rtol=1e-4, atol=1e-4)
