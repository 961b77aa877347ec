"""The entropy coder loses nothing, reaches its tables' cross-entropy, and refuses what it did not write."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralquant.codec.cold import rans_block
from spectralquant.codec.cold.entropy import EntropyCoder
from spectralquant.codec.cold.importance import NEUTRAL
from spectralquant.codec.cold.rans_block import RansParts, pack_classes, unpack_classes
from spectralquant.codec.cold.symbols import NO_SHIFT, SHIFTS, SPAN
from spectralquant.errors import PacketError, ProfileError
from sqkernels.entropy.tables import TOTAL

RANKS = (40, 25)


def make_coder(seed=0, tables=60, ranks=RANKS):
    rng = np.random.default_rng(seed)
    scale = np.geomspace(0.1, 6, tables)
    value = np.arange(-SPAN, SPAN + 1)
    rows = np.exp(-np.abs(value)[None] / scale[:, None])
    rows = np.concatenate([rows, rows[:, :1] + 1e-6], axis=1)
    choice = tuple(torch.from_numpy(rng.integers(0, tables, (9, r)).astype(np.uint8)) for r in ranks)
    return EntropyCoder(torch.from_numpy(rows / rows.sum(1, keepdims=True)).float(), choice)


def draw(coder, tokens, seed, factor=1):
    """Symbols from the coder's own tables, escapes included, and classes."""
    rng = np.random.default_rng(seed)
    classes = torch.from_numpy(rng.integers(0, 9, (tokens, 2)))
    used = coder._tables_of(classes.T.to(torch.uint8))
    slot = torch.from_numpy(rng.integers(0, TOTAL, used.shape))
    symbols = coder.tables.symbol_of_slot[used, slot] - SPAN
    far = torch.from_numpy(rng.integers(16, 120, used.shape))
    symbols = torch.where(symbols > SPAN, far, symbols * factor)
    return symbols.int(), classes


def ids_of(tokens, seed, width):
    rng = np.random.default_rng(seed)
    return None if not width else (-1, rng.integers(0, 1 << (8 * width - 2), tokens))


def same(first, second):
    return (first is None and second is None) or (first[0] == second[0] and np.array_equal(first[1], second[1]))


def through_bytes(coder, parts):
    return [rans_block.split(rans_block.join(p), coder.ranks, len(SHIFTS)) for p in parts]


@pytest.mark.parametrize("width", [0, 2, 4])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("lengths", [[1], [5, 128], [128, 128, 77, 1024]], ids=str)
def test_round_trip(lengths, adaptive, width):
    coder = make_coder()
    symbols, classes = draw(coder, sum(lengths), len(lengths), 3 if adaptive else 1)
    ids = [ids_of(n, n, width) for n in lengths]
    blocks = through_bytes(coder, coder.encode(symbols, classes, lengths, ids, adaptive_tables=adaptive))
    if adaptive and max(lengths) > 100:
        assert any(b.shifts is not None for b in blocks)
    back = coder.decode(blocks)
    assert torch.equal(back.symbols.int(), symbols) and torch.equal(back.classes, classes)
    assert all(same(a, b) for a, b in zip(ids, back.ids, strict=True))
    at = 0
    for block, n in zip(blocks, lengths, strict=True):
        alone = coder.decode([block])
        assert torch.equal(alone.symbols.int(), symbols[:, at : at + n])
        at += n


def test_blocks_do_not_depend_on_their_neighbours():
    coder = make_coder()
    symbols, classes = draw(coder, 200, 8)
    together = coder.encode(symbols, classes, [100, 100], [None, None], adaptive_tables=True)
    for i, block in enumerate(together):
        part = slice(100 * i, 100 * i + 100)
        alone = coder.encode(symbols[:, part].contiguous(), classes[part], [100], [None], adaptive_tables=True)[0]
        assert rans_block.join(alone) == rans_block.join(block)


def test_real_bytes_are_near_the_cross_entropy():
    coder = make_coder(ranks=(400, 250))
    symbols, classes = draw(coder, 1024, 1)
    blocks = coder.encode(symbols, classes, [128] * 8, [ids_of(128, i, 2) for i in range(8)])
    real = 8 * sum(len(rans_block.join(b)) - b.id_bytes for b in blocks)
    assert real == pytest.approx(coder.ideal_bits(symbols, classes), rel=0.012)


def test_neutral_classes_take_no_bytes():
    coder = make_coder()
    symbols, classes = draw(coder, 128, 1)
    block = coder.encode(symbols, torch.full_like(classes, NEUTRAL), [128], [None])[0]
    assert block.packed is None
    assert torch.equal(coder.decode(through_bytes(coder, [block])).classes, torch.full_like(classes, NEUTRAL))


def test_adaptive_tables_recover_bytes_on_foreign_statistics():
    coder = make_coder()
    symbols, classes = draw(coder, 400, 2)
    foreign = (symbols * 3).clip(-15, 15)
    sizes = [
        sum(len(rans_block.join(b)) for b in coder.encode(foreign, classes, [400], [None], adaptive_tables=adaptive))
        for adaptive in (False, True)
    ]
    assert sizes[1] < 0.95 * sizes[0]


def test_own_statistics_need_no_shift():
    coder = make_coder()
    symbols, classes = draw(coder, 1024, 3)
    block = coder.encode(symbols, classes, [1024], [None], adaptive_tables=True)[0]
    assert block.shifts is None or abs(np.array(SHIFTS)[block.shifts]).mean() < 6
    assert SHIFTS[NO_SHIFT] == 0


def test_lanes_cost_under_a_hundredth():
    coder = make_coder(ranks=(800, 1200))
    for tokens, id_bytes in ((128, 258), (128, 0), (1024, 2050), (7, 16)):
        shape = coder.shape(tokens, id_bytes)
        free = (id_bytes + coder.expected_escapes * tokens // TOTAL) // 2
        lanes = shape.total_lanes
        cost = 8 * min(lanes, free) + 24 * max(0, lanes - free)
        assert cost <= 0.01 * coder.expected_bits * tokens / TOTAL or lanes == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-(2**30), 2**30), min_size=sum(RANKS), max_size=sum(RANKS)),
    st.integers(0, 8),
    st.integers(0, 8),
)
def test_any_symbols_round_trip(values, a, b):
    coder = make_coder()
    symbols, classes = torch.tensor(values, dtype=torch.int32)[:, None], torch.tensor([[a, b]])
    blocks = through_bytes(coder, coder.encode(symbols, classes, [1], [(7, np.array([3]))]))
    assert torch.equal(coder.decode(blocks).symbols.int(), symbols)


@pytest.fixture(scope="module")
def written():
    coder = make_coder()
    symbols, classes = draw(coder, 60, 5, 3)
    symbols[3, 4] = 70_000
    block = coder.encode(symbols, classes, [60], [ids_of(60, 1, 2)], adaptive_tables=True)[0]
    assert block.shifts is not None and block.wide
    return coder, symbols, rans_block.join(block)


def attempt(coder, data):
    """Symbols, or None where the bytes are refused."""
    with contextlib.suppress(PacketError):
        return coder.decode([rans_block.split(data, coder.ranks, len(SHIFTS))])
    return None


def test_every_truncation_and_a_tail_are_refused(written):
    coder, _, data = written
    for length in range(len(data)):
        assert attempt(coder, data[:length]) is None
    assert attempt(coder, data + b"x") is None


@pytest.mark.slow
def test_flipped_bytes_are_refused_or_decoded_never_worse(written):
    """What checksums catch in a packet is refused here too where the coder can notice; nothing crashes."""
    coder, symbols, data = written
    refused = 0
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x40
        back = attempt(coder, bytes(damaged))
        refused += back is None
        assert back is None or back.symbols.shape == symbols.shape or at in (2, 3)
    tail = len(rans_block.split(data, coder.ranks, len(SHIFTS)).tail)  # plain values: any bytes are some
    assert refused >= 0.95 * (len(data) - tail)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(min_size=0, max_size=300), st.integers(0, 1), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5)
)
def test_random_bytes_are_refused_or_decoded_never_worse(data, mode, tokens, lanes, runs):
    head = rans_block.HEADER.pack(4 + mode, 2, tokens, len(data) // 4, 0, 0, lanes, runs, 2, 0)
    attempt(make_coder(), head + data)


def test_damaged_tables_are_the_profiles_fault():
    coder = make_coder()
    tables, choice = coder.tables.frequency / TOTAL, tuple(torch.zeros(9, r, dtype=torch.uint8) for r in RANKS)
    EntropyCoder(tables, choice)
    for bad in (tables.index_fill(0, torch.tensor([3]), float("nan")), tables * 2, tables * 0):
        with pytest.raises(ProfileError, match="tables are damaged"):
            EntropyCoder(bad, choice)
    with pytest.raises(ProfileError, match="beyond the 60"):
        EntropyCoder(tables, (choice[0] + 60, choice[1]))


def test_contradictions_are_refused():
    coder = make_coder()
    symbols, classes = draw(coder, 30, 6)
    block = coder.encode(symbols, classes, [30], [None])[0]
    wrong = [
        replace(block, wide=block.wide + 1, tail=np.concatenate([block.tail, np.zeros(4, np.uint8)])),
        replace(block, states=block.states[::-1].copy()),
        replace(block, words=block.words ^ np.uint16(1)),
        replace(block, packed=pack_classes((unpack_classes(block.packed[None], block.shape.tokens)[0] + 1) % 9)),
    ]
    for parts in wrong:
        assert isinstance(parts, RansParts)
        with pytest.raises(PacketError):
            coder.decode(through_bytes(coder, [parts]))
    for field, value in ((16, 31), (18, 66), (2, 2000), (1, 3), (20, 7)):
        data = bytearray(rans_block.join(block))
        data[field : field + 2] = value.to_bytes(2, "little")
        with pytest.raises(PacketError):
            rans_block.split(bytes(data), coder.ranks, len(SHIFTS))
