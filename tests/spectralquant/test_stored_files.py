"""Profiles, packets and baselines written by earlier versions are still read, to the same values (see `stored_for_tests`)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stored_for_tests import CODED, TOKENS, prompt, stored_model, values_of

from spectralquant.cache.persist.prompt import pack_prompt, unpack_cache
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.codec.packet import CODED as CODED_SECTION
from spectralquant.codec.packet import SpectralPacket
from spectralquant.gate.limits import Limits
from spectralquant.gate.metrics import metrics_of
from spectralquant.gate.run import judge
from spectralquant.profile.model import CalibrationProfile
from spectralquant.results.files import read_results

STORED = Path(__file__).parent.parent / "data" / "stored"
VERSIONS = (1, 2)


@pytest.fixture(scope="module")
def model():
    return stored_model()


@pytest.fixture(scope="module")
def profile() -> CalibrationProfile:
    return CalibrationProfile.load(STORED / "profile")


def packet(version: int) -> SpectralPacket:
    return SpectralPacket((STORED / f"packet.v{version}.sqkv").read_bytes())


def relative(got, want) -> float:
    return float((got - want).norm() / want.norm())


@pytest.fixture(scope="module")
def exact(model):
    with torch.no_grad():
        return values_of(model(input_ids=prompt(), use_cache=True).past_key_values)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_packet_is_read_to_the_values_of_the_program_that_wrote_it(model, profile, exact, version):
    stored = packet(version)
    assert int.from_bytes(bytes(stored)[4:6], "little") == version
    got = values_of(unpack_cache(model, profile, stored))
    want = load_file(STORED / f"expected.v{version}.safetensors")["values"].float()
    assert got.shape[3] == TOKENS
    assert relative(got[..., CODED, :], want) < 2e-3, "float16 rounding of what is stored, and of products"
    assert 0.01 < relative(want, exact[..., CODED, :]) < 1, "the code is lossy, and it is of this prompt"
    for part in (slice(0, 4), slice(128, TOKENS)):
        assert relative(got[..., part, :], exact[..., part, :]) < 0.01, "8-bit codes of exact tokens"


@pytest.mark.parametrize("version", VERSIONS)
def test_generation_goes_on_from_a_packet(model, profile, version):
    after = torch.tensor([[7]])
    with torch.no_grad():
        cache = unpack_cache(model, profile, packet(version))
        continued = model(input_ids=after, past_key_values=cache).logits
        whole = model(input_ids=torch.cat([prompt(), after], dim=1)).logits[:, -1:]
    assert relative(continued, whole) < 0.2


def test_a_profile_codes_as_it_did(model, profile):
    """A prompt packed today has the coded bytes of the stored packet, up to steps that products round otherwise."""
    now, then = pack_prompt(model, profile, prompt(), exact="int8")[0], packet(2)
    coded = [[len(p.body(s)) for s in p.sections if s.kind == CODED_SECTION] for p in (now, then)]
    assert len(coded[0]) == 1 and coded[0] == pytest.approx(coded[1], rel=0.01)
    values = [values_of(unpack_cache(model, profile, p))[..., CODED, :] for p in (now, then)]
    assert relative(*values) < 0.02


@pytest.mark.parametrize("tier", ["hot", "warm", "cold"])
def test_every_tier_of_the_profile_serves(model, profile, tier):
    after = torch.tensor([[7]])
    with torch.no_grad():
        cache = SpectralCache(model, profile, tier=tier)
        model(input_ids=prompt(), past_key_values=cache, logits_to_keep=1)
        continued = model(input_ids=after, past_key_values=cache).logits
        whole = model(input_ids=torch.cat([prompt(), after], dim=1)).logits[:, -1:]
    assert cache.stats().not_compressed == ()
    assert 0 < relative(continued, whole) < 0.2


def test_the_first_baseline_is_still_judged(tmp_path):
    baseline = read_results(STORED / "smoke-baseline.json")
    assert len(metrics_of(baseline)) == len(baseline.rows)
    outcome = judge(baseline, baseline, Limits())
    assert outcome.code == 0 and outcome.counts()["pass"] == len(baseline.rows)
    worse = json.loads((STORED / "smoke-baseline.json").read_text())
    ratio = next(row for row in worse["rows"] if row["metric"].endswith("payload_ratio"))
    ratio["value"] *= 0.5
    (tmp_path / "worse.json").write_text(json.dumps(worse))
    assert judge(baseline, read_results(tmp_path / "worse.json"), Limits()).code == 1
