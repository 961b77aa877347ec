"""Files from outside: whatever they hold, the library's own errors come out, and memory stays bounded by their size."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_for_tests import KINDS, bomb, material, run, show
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spectralquant.cache.persist.prompt import unpack_cache
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold.rans_block import RansParts, join
from spectralquant.codec.packet import SpectralPacket
from spectralquant.errors import InputError, PacketError, ProfileError
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.view import ProfileView
from sqkernels.entropy import BlockShape

CORPUS = (Path(__file__).resolve().parents[2] / "hostile_corpus.txt").read_text().split()
WHICH = range(2 * len(KINDS))
NAMES = [f"{kind}{', sliding' if sliding else ''}" for sliding in (False, True) for kind in KINDS]


@pytest.mark.parametrize("which", WHICH, ids=NAMES)
def test_genuine_files_pass_the_harness(which):
    found = run(bytes([which]))
    assert isinstance(found, PacketError) if "raw packet" in NAMES[which] else found is None


@pytest.mark.parametrize("entry", CORPUS)
def test_what_the_fuzzer_found_interesting(entry):
    run(bytes.fromhex(entry))


@pytest.mark.parametrize("which", WHICH, ids=NAMES)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.slow
def test_edited_files_raise_our_errors_only(which, data):
    run(bytes([which]) + data.draw(st.binary(max_size=40)))


@pytest.mark.parametrize("tokens", [1024, 128])
def test_a_small_packet_cannot_ask_for_much_memory(tokens):
    m = material()
    data = bomb(133, tokens)
    assert len(data) <= 64 + 133 * 36
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (unpack_cache, SpectralCache.unpack):
        with pytest.raises((PacketError, InputError)):
            read(m.loaded.model, m.profile, SpectralPacket(data))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 50e6


def test_a_block_that_announces_more_than_its_words_can_code_is_refused_before_it_is_decoded():
    m = material()
    cache = SpectralCache(m.loaded.model, m.profile, tier="cold")
    codec = cache.tiers["cold"].codec
    with pytest.raises(PacketError, match="announces 1024 tokens"):
        codec.decode(bytes([0, 2, 0, 4, *bytes(8)]) + bytes(2 * 1025))
    shape = BlockShape(1024, 1, 1)
    none = np.zeros(0, np.uint8)
    parts = RansParts(shape, 0, np.zeros((1, 2), np.int64), 0, None, None, np.ones(1, np.uint32), none, none)
    with pytest.raises(PacketError, match="announces 1024 tokens"):
        codec.decode(join(parts))


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 300), scale=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 30.0]), seed=st.integers(0, 99))
def test_genuine_blocks_are_never_below_the_least_size(tokens, scale, seed):
    m = material()
    g = m.loaded.geometry
    codec = SpectralCache(m.loaded.model, m.profile, tier="cold").tiers["cold"].codec
    generator = torch.Generator().manual_seed(seed)
    shape = (tokens, g.layers, g.kv_heads, g.head_dim)
    keys, values = (
        p.mean.view(1, *shape[1:]) + scale * torch.randn(shape, generator=generator) for p in codec.projectors
    )
    ids = torch.randint(0, 384, (tokens,), generator=generator)
    data = codec.encode(KVBlock(keys, values, 4, token_ids=ids, previous_id=1))
    assert len(data) >= codec.least_bytes(tokens)
    assert codec.coefficients(data).tokens == tokens


@pytest.mark.parametrize("where", [0.01, 0.3, 0.6, 0.9])
def test_a_flipped_byte_of_a_profile_or_saved_cache_is_noticed(where, tmp_path):
    m = material()
    for name in ("genuine.json", "genuine.safetensors"):
        (tmp_path / name).write_bytes((m.folder / name).read_bytes())
    data = bytearray(m.tensors)
    data[int(where * len(data))] ^= 1
    (tmp_path / "genuine.safetensors").write_bytes(data)
    for read in (CalibrationProfile.load, ProfileView.load):
        with pytest.raises(ProfileError, match="does not match its sidecar"):
            read(tmp_path / "genuine")
    (tmp_path / "genuine.safetensors").write_bytes(m.tensors)
    data = bytearray(m.sidecar)
    digit = next(i for i in range(int(where * len(data)), len(data)) if chr(data[i]).isdigit())
    data[digit] = ord("1") if data[digit] != ord("1") else ord("2")
    (tmp_path / "genuine.json").write_bytes(data)
    for read in (CalibrationProfile.load, ProfileView.load):
        with pytest.raises(ProfileError):
            read(tmp_path / "genuine")
    data = bytearray(m.snapshot)
    data[int(where * len(data))] ^= 1
    (tmp_path / "x.cache").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.cache"):
        SpectralCache.load(tmp_path / "x.cache", m.loaded.model, m.profile)


@pytest.mark.parametrize("value", ["x", [], {}, None, True, 1e308], ids=str)
@pytest.mark.parametrize("figure", ["payload_ratio", "delta_ppl", "kl_nats", "top1"])
def test_measured_figures_of_any_kind_give_a_page_or_an_error_of_ours(figure, value, tmp_path):
    m = material()
    sidecar = json.loads(m.sidecar) | {"sidecar_sha256": ""}
    sidecar["tiers"]["cold"]["measured"][figure] = value
    (tmp_path / "x.json").write_text(json.dumps(sidecar))
    (tmp_path / "x.safetensors").write_bytes(m.tensors)
    if isinstance(value, (str, list, dict)):
        with pytest.raises(ProfileError, match="measured figures cannot be right"):
            show(tmp_path / "x.json", page=False)
    else:
        show(tmp_path / "x.json", page=figure == "kl_nats")
