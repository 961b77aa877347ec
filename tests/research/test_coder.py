"""The coder's study: a sample scales, and its checks and rows are what they say."""

import numpy as np
import pytest
import torch
from conftest import profile_of

from research.coder.model import sample_of_model
from research.coder.study import Case, coder_study, random_round_trips
from research.coder.symbols import SymbolSample
from spectralquant.cache.persist.prompt import pack_prompt, profile_codecs
from spectralquant.errors import InputError
from spectralquant.models.shapes import ModelShape
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize


@pytest.fixture(scope="module")
def sample():
    loaded, profile = profile_of("llama")
    text = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 10_000)
    return sample_of_model(loaded, profile, text, 700, "a test")


def test_a_scaled_sample_has_the_statistics_of_the_first(sample, tmp_path):
    sample.save(tmp_path / "s.npz")
    again = SymbolSample.load(tmp_path / "s.npz")
    assert torch.equal(again.symbols, sample.symbols) and again.source == sample.source
    wide = sample.scaled(3.0, 20)
    assert wide.symbols.shape == (3 * len(sample.symbols), 20 * 128)
    rows = wide.symbols[::3].float()
    assert abs(rows.std() / sample.symbols.float().std() - 1) < 0.2
    assert not torch.equal(wide.symbols[0], wide.symbols[1])
    bits = [s.coder().ideal_bits(s.symbols.int(), s.classes) / s.symbols.numel() for s in (sample, wide)]
    assert bits[1] == pytest.approx(bits[0], rel=0.1)


def test_rows_and_checks(sample):
    shape = ModelShape("small", 3, 4, 2, 16, 64, 96, 512)
    result = coder_study(sample, shape, torch.device("cpu"), [Case("smollm2-135m", 256)], random_blocks=30)
    checks = result["checks"]
    assert checks["blocks"] == 30 and checks["damaged"] == checks["damage_refused"] > 0
    assert checks["bytes_differ"] == checks["wrong_on_cpu"] == checks["wrong_on_device"] == 0
    ours, zstd = result["rows"]
    assert ours["round_trip_exact"] and ours["fp16_bytes"] == 256 * 23040
    assert ours["symbols"] == zstd["symbols"] and zstd["bytes"] > 0
    assert 0 < ours["streams_overhead_share"] < 0.03
    assert result["summary"]["decode_gb_s_smollm2-135m_256x1"] == ours["decode_gb_s"] > 0


def test_a_packet_without_coded_blocks_is_refused():
    loaded, profile = profile_of("llama")
    packet = pack_prompt(loaded.model, profile, torch.from_numpy(np.arange(50))[None])[0]
    with pytest.raises(InputError, match="no coded blocks"):
        SymbolSample.of_packet(profile_codecs(loaded.model, profile, profile.geometry.groups)[0], packet, "a test")


@pytest.mark.gpu
@pytest.mark.slow
def test_ten_thousand_random_blocks_are_the_same_from_cpu_and_gpu(sample):
    checks = random_round_trips(sample, torch.device("cuda"), 10_000, lambda stage, done, total: None)
    assert checks["blocks"] == 10_000
    assert checks["bytes_differ"] == checks["wrong_on_cpu"] == checks["wrong_on_device"] == 0
    assert checks["damage_refused"] >= 0.95 * checks["damaged"]  # what checksums catch, the coder alone may not
