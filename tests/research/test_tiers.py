"""The tier, quality and cache studies end to end, on the small model."""

import pytest
from conftest import profile_of
from rich.console import Console

from research.cache import cache_study
from research.quality.parts import QualityStudy
from research.quality.study import QualityParts, joined
from research.tiers import TierStudy, tier_study
from spectralquant.text.mix import tokenize_sources
from spectralquant.text.read import load_text, open_sources
from spectralquant.text.tokens import tokenize
from sqcli.terminal.study import study_view


def test_tiers_are_measured_and_held():
    loaded, _ = profile_of("llama")
    text = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 30_000)
    study = TierStudy(8, 384, 2, hot=(4,), warm=(8,), cold=(10,), resident_context=768)
    result = tier_study(loaded, text, study, "builtin:pydoc")
    assert [r["options"]["tier"] for r in result["rows"]] == ["hot", "warm", "cold"]
    assert [r["payload_ratio"] for r in result["rows"]] == pytest.approx([4, 8, 8], rel=0.2)
    held = {r["tier"]: r for r in result["resident"]}
    assert 0.5 < held["exact"]["resident_ratio"] <= 1  # a slab of eight pages holds five blocks
    assert 1 < held["hot"]["resident_ratio"] < held["warm"]["resident_ratio"]
    assert held["exact"]["kl_nats"] == 0
    result.resident = []  # as where the scored windows are too few
    console = Console(record=True, width=100)
    console.print(*study_view(result))
    assert "What caches hold was not measured" in " ".join(console.export_text().split())


@pytest.mark.slow
def test_quality_is_measured_part_by_part_and_resumed(tmp_path):
    loaded, _ = profile_of("llama")
    text = tokenize_sources(loaded.tokenizer, open_sources(["builtin:pydoc"]), 512, window=512, read=30_000)
    study = QualityStudy(
        steps=8, general_steps=8, window=512, windows=2, per_text=1, ratios=(8, 12, 16), cost_windows=1, held_out=1
    )
    out = tmp_path / "quality.json"
    for _ in range(2):  # the second time nothing is left to do
        run = QualityParts(out, loaded, study, lambda *_: None)
        run.home(text, "pydoc")
        run.general(text, "pydoc")
        run.texts([("in the mix", "pydoc", lambda: text), ("outside", "again", lambda: text)], (0, 1))
    result = joined(out, study)
    assert len(result["texts"]) == 2 and result["summary"]["general_in_mix_min_ratio"] > 1
    assert result["summary"]["ratio_at_kl_0.01_gemma3"] is None
    assert sum(result["texts"][0]["ways"].values()) == 3
    assert result["texts"][0]["kl"] == result["texts"][1]["kl"]


@pytest.mark.slow
def test_quality_takes_a_profile_that_is_there(tmp_path):
    from research.quality.run import QualityTexts, run_quality

    loaded, profile = profile_of("llama")
    profile.save(tmp_path / "p")
    study = QualityStudy(window=512, per_text=1, turbo_bits=(3,), bound=0.01)
    texts = QualityTexts(("builtin:pydoc",), (), ("builtin:pydoc",), ("builtin:stdlib",))
    silent = lambda *_: None  # noqa: E731
    result = run_quality(
        loaded, study, texts, ("general", "texts"), tmp_path / "q.json", silent, silent, tmp_path / "p"
    )
    general = result["general"]
    assert len({p["text"] for p in general["errors"]}) >= 7 and general["error_limits"]["second"] > 0
    assert [t["kind"] for t in result["texts"]] == ["more", "outside"]
    assert all(t["errors"]["first"] > 0 and sum(t["ways"].values()) == 3 for t in result["texts"])
    assert result["summary"]["bound_exceeded_max_share"] is not None


@pytest.mark.slow  # processes that import torch and load a model each
def test_costs_are_measured_in_processes_of_their_own(small_folder, tmp_path):
    """A folder's name is all that another process needs."""
    from dataclasses import replace

    from spectralquant.calibrating.api import calibrate_model
    from spectralquant.calibration.options import CalibrationSettings
    from spectralquant.models.load import load_model

    loaded = load_model(str(small_folder), device="cpu")
    text = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 12_000)
    settings = CalibrationSettings(
        steps=3, window=384, tiers=("hot",), metric="attention", held_out_windows=1, held_out_window=384
    )
    profile = calibrate_model(loaded, text, settings, out=tmp_path / "p")
    profile = replace(profile, path=tmp_path / "p")
    rows = cache_study(loaded, profile, text, 1024, 512, lambda *_: None)["rows"]
    assert [r["tier"] for r in rows] == ["none", "hot"]
    assert all(r["peak_memory_bytes"] > 0 for r in rows)
    assert rows[1]["token_s"] > 0
