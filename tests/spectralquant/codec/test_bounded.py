"""Blocks coded to a bound: the bound holds, whatever the block; every way is taken; damage is refused."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import replace

import pytest
import torch
from conftest import profile_of

from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold.complement import bounded_block
from spectralquant.codec.cold.complement.bounded import ErrorBound
from spectralquant.codec.cold.complement.bounded_block import way_of
from spectralquant.codec.cold.complement.coder import ComplementCoder
from spectralquant.codec.cold.complement.heads import WeightedHeads
from spectralquant.codec.cold.complement.ladder import ladder
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.cold.symbols import SPAN
from spectralquant.errors import InputError, PacketError
from spectralquant.hooks.kv_capture import capture_keys_values
from spectralquant.models.weights import embedding_weight
from spectralquant.profile.promises import (
    BEFORE,
    BEYOND,
    MEASURE,
    UNSEEN_KINDS,
    ErrorLimits,
    error_limits,
    kl_as_calibrated,
    kl_of_second,
)
from spectralquant.profile.schema import ErrorPoint, TierSummary
from spectralquant.text.standins import STAND_INS, other_alphabet, other_letters

TOKENS = 96


@functools.cache
def block(noise: float = 0.0) -> KVBlock:
    """A block of the small model's own keys and values, with `noise` added."""
    loaded, _ = profile_of("llama")
    g, ids = loaded.geometry, torch.randint(0, 500, (TOKENS + 4,), generator=torch.Generator().manual_seed(0))
    shape = (-1, g.layers, g.kv_heads, g.head_dim)
    keys, values = (x.view(shape).contiguous() for x in capture_keys_values(loaded.model, g, ids))
    generator = torch.Generator().manual_seed(1)
    added = [noise * torch.randn(keys.shape, generator=generator) for _ in range(2)]
    return KVBlock(keys + added[0], values + added[1], 4, None, ids[4:], int(ids[3]))


def codec(error: float | None = None) -> SpectralCodec:
    loaded, profile = profile_of("llama")
    heads = WeightedHeads(profile.heads, profile.sidecar.tiers["cold"].step, loaded.geometry, "cpu")
    bound = None if error is None else ErrorBound(error, error)
    return SpectralCodec(
        profile.tier("cold"), loaded.geometry, embedding_weight(loaded.model), heads=heads, bound=bound
    )


def first_error(x: KVBlock) -> float:
    """The error of a block as calibrated."""
    coder = codec(float("inf"))
    coder.encode(x)
    return coder.errors[-1].first


def error_left(coder: SpectralCodec, x: KVBlock, data: bytes) -> float:
    """What a second stage left, in the heads' metric; importance plays no part where attention was not seen."""
    keys, values = coder.decode(data)
    return coder.heads.error(coder.heads.project(x.keys - keys, x.values - values))


def complemented(x: KVBlock) -> tuple[SpectralCodec, bytes]:
    """A codec whose bound the block keeps by a complement, and its bytes."""
    start = first_error(x)
    for share in (0.95, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05):
        coder = codec(start * share)
        data = coder.encode(x)
        if way_of(data) == "complement":
            return coder, data
    raise AssertionError("no bound that a complement keeps")


@pytest.mark.parametrize("noise", [0.0, 0.3, 30.0])
def test_the_bound_holds_and_costs_more_bytes_the_tighter_it_is(noise):
    x, plain = block(noise), codec()
    start = first_error(x)
    ways, sizes = set(), []
    for share in (2.0, 1.0, 0.6, 0.3, 0.1, 0.03, 0.01):
        coder = codec(start * share)
        data = coder.encode(x)
        ways.add(way_of(data))
        sizes.append(len(data))
        told = coder.errors[-1]
        assert (told.first if told.left is None else told.left) <= start * share
        if way_of(data) in ("complement", "turboquant"):
            assert error_left(coder, x, data) == pytest.approx(told.left, rel=1e-3)
        assert len(data) <= x.fp16_bytes + 100
    assert all(a <= 1.1 * b for a, b in itertools.pairwise(sizes))
    assert noise == 30.0 or {"as calibrated", "complement"} <= ways
    assert codec(start * 2).encode(x) == plain.encode(x)  # nothing is paid where nothing is needed


def test_a_sketch_tells_what_the_basis_drops():
    for noise in (0.0, 0.3):
        x, coder = block(noise), codec(float("inf"))
        projected = coder.projected([x])
        whole = [p.reconstruct(y, projected.features) for p, y in zip(coder.projectors, projected.y, strict=True)]
        dropped = [w.view(x.keys.shape) for w in whole]
        exact = coder.heads.error(coder.heads.project(x.keys - dropped[0], x.values - dropped[1]))
        assert float(projected.outside.sum(1).mean()) == pytest.approx(exact, rel=0.15)
        coder.encode(x)
        assert coder.errors[-1].outside == pytest.approx(exact, rel=0.15)
        assert coder.errors[-1].outside < coder.errors[-1].first


def test_runs_code_as_single_blocks_do():
    x, y = block(), block(0.3)
    for share in (1.0, 0.5):
        coder = codec(first_error(x) * 1.01 * share)
        assert coder.encode_run([x, y, x]) == [coder.encode(each) for each in (x, y, x)]


def test_what_cannot_be_coded_is_raw_and_comes_back():
    x = block()
    broken = replace(x, keys=x.keys.clone())
    broken.keys[3, 0, 0, 0] = float("inf")
    for y, error in ((broken, 1.0), (x, 1e-9)):
        data = codec(error).encode(y)
        assert way_of(data) == "raw"
        keys, _ = codec().decode(data)
        assert torch.allclose(keys, y.keys, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_layers_and_runs_decode_like_whole_blocks():
    x, plain = block(0.3), codec()
    coder, data = complemented(x)
    keys, values = coder.decode(data)
    run = coder.coefficients_run([data, plain.encode(x), data])
    assert [part.tokens for part in run] == [3 * TOKENS]
    middle = plain.decode(plain.encode(x))[0]
    for layer in range(coder.geometry.layers):
        k, v = coder.layer(run[0], layer)
        assert torch.allclose(k[:TOKENS], keys[:, layer].flatten(1), atol=1e-4)
        assert torch.allclose(v[-TOKENS:], values[:, layer].flatten(1), atol=1e-4)
        assert torch.allclose(k[TOKENS : 2 * TOKENS], middle[:, layer].flatten(1), atol=1e-4)
        part, _ = coder.layer(run[0].part(TOKENS - 5, TOKENS + 5), layer)
        assert torch.allclose(part, k[TOKENS - 5 : TOKENS + 5], atol=1e-4)


def test_damaged_blocks_are_refused_or_decode_to_numbers():
    x = block(0.3)
    start = first_error(x)
    generator = random.Random(0)
    for share in (0.2, 0.003):
        coder = codec(start * share)
        data = coder.encode(x)
        assert data[0] == bounded_block.BOUNDED
        for _ in range(150):
            bad = bytearray(data)
            if generator.random() < 0.3:
                bad = bad[: generator.randrange(len(bad))]
            else:
                bad[generator.randrange(min(len(bad), 80) if generator.random() < 0.5 else len(bad))] ^= (
                    1 << generator.randrange(8)
                )
            try:
                keys, _ = coder.decode(bytes(bad))
            except PacketError:
                continue
            assert keys.shape[1:] == x.keys.shape[1:]


def test_a_second_stage_needs_the_heads():
    _, data = complemented(block(0.3))
    _, profile = profile_of("llama")
    loaded, _ = profile_of("llama")
    without = SpectralCodec(profile.tier("cold"), loaded.geometry, embedding_weight(loaded.model))
    with pytest.raises(PacketError, match="heads"):
        without.decode(data)


@pytest.mark.parametrize("dim", [16, 24, 5])
def test_complements_come_back_exactly(dim):
    coder = ComplementCoder(6, dim, "cpu")
    generator = torch.Generator().manual_seed(dim)
    y = torch.randn(6, dim, 40, generator=generator) * torch.rand(6, dim, 1, generator=generator) ** 6 * 50
    y[2], y[4, 0] = 0, 1e6
    steps = torch.rand(6, 1, 40, generator=generator) + 0.5
    coded = coder.symbols(y, steps)
    assert torch.equal(coder.decode(coder.encode(coded), 40), coded.symbols)
    left = (y - coder.values(coded.symbols, steps)) / steps
    assert left[[0, 1, 3, 5]].abs().max() < 2 and left.square().sum() < (y / steps).square().sum()
    nothing = coder.symbols(torch.zeros_like(y), steps)
    assert len(coder.encode(nothing)) < 40 and not coder.decode(coder.encode(nothing), 40).any()


def test_rungs_are_whole_and_get_wider():
    tables = ladder()
    assert (tables.frequency.sum(1) == 1024).all()
    assert (tables.frequency[:, SPAN].diff() < 0).all()


def test_a_promise_takes_the_text_that_suffers_most():
    second = [
        ErrorPoint(text=t, error=e, kl=k * e, second=True)
        for t, k in (("a", 1e-5), ("b", 3e-5))
        for e in (100.0, 400.0)
    ]
    plain = [ErrorPoint(text="a", error=50.0, kl=0.004), ErrorPoint(text="b", error=90.0, kl=0.02)]
    summary = TierSummary(
        target="error=0.01",
        predicted_ratio=1,
        alive_key=1,
        alive_value=1,
        captured_energy_key=1,
        captured_energy_value=1,
        errors=plain + second,
        error_measure=MEASURE,
    )
    assert error_limits(summary, 0.006).second == pytest.approx(UNSEEN_KINDS * 200, rel=0.01)
    assert error_limits(summary, 0.0015).second == pytest.approx(UNSEEN_KINDS * 50, rel=0.01)
    assert error_limits(summary, 0.006).plain == BEFORE * 90  # a stays as calibrated, b does not
    assert error_limits(summary, 0.003).plain == BEFORE * 50
    assert error_limits(summary, 1.0) == ErrorLimits(BEYOND * 90, 400)
    assert kl_of_second(summary, 200.0) == pytest.approx(0.006) and kl_of_second(summary, 800.0) == pytest.approx(0.024)
    assert kl_as_calibrated(summary, 25.0) == 0.002 and 0.004 < kl_as_calibrated(summary, 70.0) < 0.02
    with pytest.raises(InputError, match="far under"):
        error_limits(summary, 1e-6)
    with pytest.raises(InputError, match="earlier version"):
        error_limits(summary.model_copy(update={"error_measure": 1}), 0.01)
    with pytest.raises(InputError, match="--target error"):
        error_limits(summary.model_copy(update={"errors": []}), 0.01)


def test_stand_ins_are_other_text_with_the_same_repeats():
    text = "The import statement binds the name. The import statement again.\n" * 40
    for name, change in STAND_INS.items():
        made = change(text)
        assert made != text or name == "made: repeated"
        assert made[: len(made) // 4] in made[len(made) // 4 :] or name == "made: repeated"
    assert other_letters("aA bB") == "iI kK"
    assert set(other_alphabet("Abc")) <= set("Абц")
