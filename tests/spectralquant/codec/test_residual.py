"""The layered mode never does worse than either of its parts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles_for_tests import random_block, random_codec

from spectralquant.codec.residual import MODES, TurboQuantResidual
from spectralquant.codec.turboquant import TurboQuantizer
from spectralquant.errors import InputError, PacketError


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), tokens=st.integers(1, 40), bits=st.integers(1, 4))
def test_error_is_at_most_that_of_each_part(seed, scale, tokens, bits):
    block = random_block(seed, tokens, scale)
    codec = TurboQuantResidual(random_codec(), bits=bits)
    errors = codec.errors(block)
    keys, values = codec.decode(codec.encode(block), block)
    kept = float((keys - block.keys).double().square().sum() + (values - block.values).double().square().sum())
    assert kept <= min(errors["spectral"], errors["turboquant"]) * (1 + 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_block_keeps_the_mode_it_is_told_to(mode):
    block = random_block(0, 20, 1.0)
    codec = TurboQuantResidual(random_codec(), bits=3, mode=mode)
    data = codec.encode(block)
    assert MODES[data[0]] == mode
    keys, _ = codec.decode(data, block)
    assert 0 < (keys - block.keys).norm() < block.keys.norm()


def test_weighted_error_decides_when_given():
    block = random_block(1, 20, 1.0)
    only_values = TurboQuantResidual(random_codec(), bits=2, error=lambda k, v: float(v.square().sum()))
    errors = only_values.errors(block)
    assert errors["layered"] < errors["spectral"]


def test_wrong_mode_bits_and_bytes_are_refused():
    with pytest.raises(InputError, match="not one of auto"):
        TurboQuantResidual(random_codec(), mode="best")
    with pytest.raises(InputError, match="outside 1 to 8"):
        TurboQuantizer(16, 9)
    block = random_block(0, 4, 1.0)
    codec = TurboQuantResidual(random_codec(), bits=2)
    data = codec.encode(block)
    for damaged in (data[:3], data[:-1], b"\x07" + data[1:]):
        with pytest.raises(PacketError):
            codec.decode(damaged, block)
