"""The whole study of packets' speed at tiny shapes on a CPU: parts, what is kept of an earlier run, its summary and its page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import profile_of
from test_cold_speed import sample

from research.cold_speed import parts
from research.cold_speed.costs import QualityOf
from research.cold_speed.cpu import cpu_rows
from research.cold_speed.parts import PARTS, Bearings
from research.cold_speed.study import cold_speed_study, joined, require_gpu
from research.cold_speed.summary import summary_of
from spectralquant.errors import InputError
from spectralquant.files import json_text
from spectralquant.models.shapes import SHAPES, parse_shape
from spectralquant.results.files import read_results
from sqcli.html.report import report_page

LARGE = "custom:layers=4,heads=4,kv_heads=2,head_dim=32,hidden=128,intermediate=128,vocab=512"
KEYS = (
    "decode_gb_s_8k",
    "decode_gb_s_32k",
    "encode_gb_s_8k",
    "prefill_over_decode_8k",
    "prefill_longer_share",
    "streams_overhead_share",
)


@pytest.fixture(scope="module")
def bearings() -> Bearings:
    drawn, own = sample()
    loaded, profile = profile_of("llama")
    windows = torch.randint(5, 500, (1, 700), generator=torch.Generator().manual_seed(1))
    quality = QualityOf(profile, "a test", lambda device: (loaded, windows))
    return Bearings(drawn, own, torch.device("cpu"), random_blocks=40, quality=quality)


@pytest.mark.slow  # every part once
def test_one_command_measures_every_part_and_goes_on_where_it_stands(bearings, monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "CONTEXTS", (512, 640))
    monkeypatch.setattr(parts, "SMALL_BATCH", 1)
    monkeypatch.setattr(parts, "LARGE", LARGE)
    small = {
        name: replace(SHAPES[name], layers=2, hidden=64, vocab=512, windows=SHAPES[name].windows[-2:])
        for name in parts.SMALL
    }
    monkeypatch.setattr(parts, "SHAPES", {LARGE: replace(parse_shape(LARGE), name=LARGE)} | small)
    monkeypatch.setattr("research.cold_speed.summary.NAMES", {512: "8k", 640: "32k"})
    monkeypatch.setattr("research.cold_speed.summary.LARGE", LARGE)
    for module in ("codec", "prefill"):
        monkeypatch.setattr(f"research.cold_speed.{module}.RUNS", 1)
    monkeypatch.setattr("research.cold_speed.cpu.THREADS", 1)
    tiny = replace(parse_shape(LARGE), name="tiny")
    monkeypatch.setattr(parts, "cpu_rows", lambda sample, own: cpu_rows(sample, own, tiny, 256))
    monkeypatch.setattr(parts, "product_rate", lambda device: 1.0)
    saved = []
    result = cold_speed_study(bearings, save=saved.append)
    assert set(result["parts"]) == set(PARTS) and all(p["whole"] for p in result["parts"].values())
    assert all(result["summary"][key] is not None for key in KEYS)
    models = {r["model"] for r in result["rows"]}
    assert any("full" in m for m in models) and any("sliding" in m for m in models)
    blocks = result["checks"]["blocks"]
    assert blocks["packets_refused"] == blocks["packets_damaged"] > 0
    assert result["checks"]["quality"]["quality"]["kl_bfloat16_over_float32"] > 0
    (tmp_path / "r.json").write_text(json_text(result.as_json()))
    earlier = read_results(tmp_path / "r.json")
    again = cold_speed_study(bearings, earlier=earlier)
    assert again.as_json()["rows"] == earlier.as_json()["rows"]
    page = report_page([(Path("cold.json"), earlier)]).render()
    assert "first token" in page


def test_parts_are_refused_that_are_not_there_or_lack_something(bearings, monkeypatch):
    monkeypatch.setattr(parts, "CONTEXTS", (256,))
    monkeypatch.setattr(parts, "LARGE", "smollm2-135m")
    with pytest.raises(InputError, match="codec"):
        cold_speed_study(bearings, ["codecs"])
    with pytest.raises(InputError, match="--profile"):
        cold_speed_study(replace(bearings, quality=None), ["quality"])
    with pytest.raises(InputError, match="GPU"):
        require_gpu(torch.device("cpu"))
    with pytest.raises(InputError, match="CUDA GPU"):
        require_gpu(torch.device("cpu"), ("cpu", "codec"))
    require_gpu(torch.device("cpu"), ("cpu",))
    first = cold_speed_study(bearings, ["blocks"])
    with pytest.raises(InputError, match="two of the files"):
        joined([first, first])
    both = joined([first, cold_speed_study(bearings, ["coders"])])
    assert list(both["parts"]) == ["coders", "blocks"] and both["checks"]["blocks"] == first["checks"]["blocks"]
    other = replace(bearings, own=replace(bearings.own, name="another"))
    with pytest.raises(InputError, match="sample_shape"):
        cold_speed_study(other, ["blocks"], earlier=first)


def test_the_summary_has_its_figures_even_where_rows_are_missing():
    summary = summary_of([])
    assert set(KEYS) <= set(summary) and all(summary[key] is None for key in KEYS)


def test_the_measured_results_have_every_figure_of_the_summary_and_every_part():
    result = read_results(Path(__file__).parents[2] / "profiles" / "results" / "cold-speed-h100.json")
    assert all(isinstance(result["summary"][key], float) for key in KEYS)
    assert set(result["parts"]) >= set(PARTS) - {"quality"} and all(part["whole"] for part in result["parts"].values())
    assert result["summary"] == summary_of([row.as_json() for row in result["rows"]])
