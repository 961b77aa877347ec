"""A bound on the error through calibration, caches, packets and snapshots."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from conftest import SMALL_CALIBRATION, profile_of

from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.targets import parse_target
from spectralquant.codec.packet import SpectralPacket
from spectralquant.errors import InputError
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

BOUND = 0.004


@functools.cache
def promised():
    loaded, _ = profile_of("llama")
    text = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 10_000)
    settings = replace(SMALL_CALIBRATION, tiers=("cold",), targets={"cold": parse_target(f"error={BOUND}")})
    return loaded, calibrate_model(loaded, text, settings), text


def filled(bound="auto") -> SpectralCache:
    loaded, profile, text = promised()
    cache = SpectralCache(loaded.model, profile, tier="cold", bound=bound)
    with torch.no_grad():
        loaded.model(text.windows(640)[5:6], past_key_values=cache)
    return cache


def test_an_error_target_leaves_a_table_and_caches_keep_it():
    _, profile, _ = promised()
    summary = profile.sidecar.tiers["cold"]
    assert len({p.text for p in summary.errors}) >= 4 and all(p.kl > 0 for p in summary.errors)
    assert summary.measured["options"]["bound"] == BOUND
    assert filled().options["bound"] == BOUND and filled(None).options["bound"] is None
    assert sum(filled().stats().ways.values()) == 4
    assert set(filled(None).stats().ways) == {"as calibrated"}


def test_a_tighter_bound_takes_more_bytes_and_says_which_ways():
    loose, tight = filled().stats(), filled(BOUND / 8).stats()
    assert tight.payload_ratio < loose.payload_ratio
    assert set(tight.ways) - {"as calibrated"}


def test_packets_of_bounded_blocks_have_a_version_of_their_own(tmp_path):
    loaded, profile, text = promised()
    tight = filled(BOUND / 8)
    packet, plain = tight.pack()[0], filled(None).pack()[0]
    assert (packet.data[4], plain.data[4]) == (3, 2)
    assert packet.ways == tight.stats().ways
    again = SpectralCache.unpack(loaded.model, profile, SpectralPacket(bytes(packet)))
    tight.save(tmp_path / "x.sqc")
    restored = SpectralCache.load(tmp_path / "x.sqc", loaded.model, profile)
    assert restored.options["bound"] == BOUND / 8
    with torch.no_grad():
        logits = [loaded.model(text.windows(640)[6:7, :4], past_key_values=c).logits for c in (tight, again, restored)]
    assert torch.equal(logits[0], logits[2])
    assert torch.allclose(logits[0], logits[1], atol=1e-4)


def test_bounds_that_cannot_be_kept_are_refused():
    loaded, profile, _ = promised()
    _, without = profile_of("llama")
    for held, bound in ((without, 0.01), (None, 0.01), (profile, -1.0), (profile, "tight"), (profile, 1e-9)):
        with pytest.raises(InputError):
            SpectralCache(loaded.model, held, bound=bound)
    with pytest.raises(InputError, match="cold tier"):
        from spectralquant.calibration.options import parse_targets

        parse_targets(["warm:error=0.01"], ("warm",))
