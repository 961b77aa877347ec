"""The entropy coder loses nothing and reaches its tables' cross-entropy."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralquant.codec.entropy import ALPHABET, SHIFTS, SPAN, EntropyCoder
from spectralquant.errors import PacketError

RANKS = (40, 25)


def make_coder(seed=0, tables=60):
    rng = np.random.default_rng(seed)
    scale = np.geomspace(0.1, 6, tables)
    value = np.arange(-SPAN, SPAN + 1)
    rows = np.exp(-np.abs(value)[None] / scale[:, None])
    rows = np.concatenate([rows, rows[:, :1] + 1e-6], axis=1)
    choice = tuple(rng.integers(0, tables, (9, r)).astype(np.uint8) for r in RANKS)
    return EntropyCoder(rows / rows.sum(1, keepdims=True), choice, np.full((2, 9), 1 / 9))


def draw(coder, tokens, seed):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 9, (tokens, 2)).astype(np.int32)
    symbols = []
    for kind in (0, 1):
        table = coder.choice[kind][classes[:, kind]]
        cumulative = coder.tables.cumsum(1)[table]
        index = (rng.random(table.shape)[..., None] > cumulative).sum(-1).clip(0, ALPHABET - 1)
        value = np.where(index == ALPHABET - 1, rng.integers(16, 5000, index.shape), index - SPAN)
        symbols.append(value.astype(np.int32))
    return (symbols[0], symbols[1]), classes


@pytest.mark.parametrize("tokens", [1, 5, 128])
@pytest.mark.parametrize("adaptive", [False, True])
def test_round_trip(tokens, adaptive):
    coder = make_coder()
    symbols, classes = draw(coder, tokens, tokens)
    shifts = coder.best_shifts(symbols, classes) if adaptive else None
    words, escapes = coder.encode(symbols, classes, shifts)
    decoded, back = coder.decode(words, escapes, tokens, adaptive=adaptive)
    assert np.array_equal(back, classes)
    assert all(np.array_equal(a, b) for a, b in zip(symbols, decoded, strict=True))


def test_real_bytes_are_within_one_and_a_half_percent_of_the_cross_entropy():
    coder = make_coder()
    symbols, classes = draw(coder, 1500, 1)
    words, escapes = coder.encode(symbols, classes)
    assert 32 * (len(words) + len(escapes)) == pytest.approx(coder.ideal_bits(symbols, classes), rel=0.015)


def test_adaptive_tables_recover_bytes_on_foreign_statistics():
    coder = make_coder()
    symbols, classes = draw(coder, 400, 2)
    foreign = tuple((s * 3).astype(np.int32).clip(-15, 15) for s in symbols)
    plain = len(coder.encode(foreign, classes)[0])
    shifted = len(coder.encode(foreign, classes, coder.best_shifts(foreign, classes))[0])
    assert shifted < 0.95 * plain


def test_own_statistics_need_no_shift():
    coder = make_coder()
    symbols, classes = draw(coder, 4000, 3)
    for shifts in coder.best_shifts(symbols, classes):
        assert abs(np.array(SHIFTS)[shifts]).mean() < 6


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-(2**30), 2**30), min_size=sum(RANKS), max_size=sum(RANKS)),
    st.integers(0, 8),
    st.integers(0, 8),
)
def test_any_symbols_round_trip(values, a, b):
    coder = make_coder()
    symbols = (np.array([values[: RANKS[0]]], np.int32), np.array([values[RANKS[0] :]], np.int32))
    classes = np.array([[a, b]], np.int32)
    decoded, _ = coder.decode(*coder.encode(symbols, classes), 1)
    assert all(np.array_equal(x, y) for x, y in zip(symbols, decoded, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.integers(1, 6), st.booleans())
def test_random_words_are_refused_or_decoded_never_worse(data, tokens, adaptive):
    words = np.frombuffer(data[: len(data) // 4 * 4], np.uint32)
    with contextlib.suppress(PacketError):
        make_coder().decode(words, np.zeros(0, np.int32), tokens, adaptive=adaptive)
