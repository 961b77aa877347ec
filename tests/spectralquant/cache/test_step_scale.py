"""Floats that pass a float32 header come back equal to what was written."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spectralquant as sq
from spectralquant.cache.persist.prompt import profile_codec
from spectralquant.codec.packet import packet_float
from spectralquant.errors import InputError, PacketError
from tests.conftest import profile_of

IDS = torch.randint(0, 512, (1, 520), generator=torch.Generator().manual_seed(5))
SCALES = (0.5, 0.7, 0.1, 1 / 3, 1.3, math.pi, 2, np.float32(0.7), np.float64(0.7), torch.tensor(0.7).item(), 1e-3, 1e3)


@pytest.fixture(scope="module")
def llama():
    loaded, profile = profile_of("llama")
    return loaded.model, profile


@pytest.mark.parametrize("scale", SCALES)
def test_a_packet_opens_with_the_scale_it_was_made_with(llama, scale, tmp_path):
    packet = sq.pack_prompt(*llama, IDS, step_scale=scale)[0]
    assert packet.header.step_scale == packet_float(scale) == profile_codec(*llama, step_scale=scale).step_scale
    packet.save(tmp_path / "p.sqkv")
    for source in (packet, tmp_path / "p.sqkv"):
        for wanted in (scale, packet.header.step_scale):
            cache = sq.SpectralCache.unpack(*llama, source, step_scale=wanted)
            again = cache.pack()[0]
            assert again.header.step_scale == packet.header.step_scale
    cache = sq.SpectralCache.unpack(*llama, packet, step_scale=scale)
    assert cache.options["step_scale"] == packet_float(scale)
    cache.save(tmp_path / "c")
    assert sq.SpectralCache.load(tmp_path / "c", *llama).options["step_scale"] == packet_float(scale)
    keys = torch.randn(3, 2, 300, 16, generator=torch.Generator().manual_seed(1))
    ids = IDS[0, :300]
    made = cache.compress(keys, token_ids=ids)
    sq.SpectralCache.unpack(*llama, made, step_scale=scale)


def test_another_scale_is_still_refused(llama):
    packet = sq.pack_prompt(*llama, IDS, step_scale=0.7)[0]
    for wanted in (0.7001, 1.0):
        with pytest.raises(PacketError, match=r"Pass step_scale=0\.7"):
            sq.SpectralCache.unpack(*llama, packet, step_scale=wanted)


@pytest.mark.parametrize("scale", (0, -1, float("nan"), float("inf"), 1e-60, 1e60))
def test_scales_that_float32_cannot_hold_are_refused(llama, scale):
    for use in (
        lambda: sq.SpectralCache(*llama, step_scale=scale),
        lambda: sq.pack_prompt(*llama, IDS, step_scale=scale),
        lambda: profile_codec(*llama, step_scale=scale),
    ):
        with pytest.raises(InputError, match="step_scale"):
            use()


@given(st.floats(min_value=2.0**-126, max_value=float(np.finfo(np.float32).max)))
def test_what_is_kept_is_what_float32_keeps(value):
    kept = packet_float(value)
    assert kept == packet_float(kept) == float(np.float32(value))
