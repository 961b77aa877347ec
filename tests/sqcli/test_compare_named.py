"""What `sq compare` was asked for decides how it ends, and what is given beside --quick holds."""

from __future__ import annotations

import json

import pytest
from commands_for_tests import SENTENCE, sq


@pytest.fixture
def common(small_profile, small_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path / "cache"))
    small_profile.save(tmp_path / "p")
    (tmp_path / "t.txt").write_text(SENTENCE * 200)
    return ["-p", tmp_path / "p", "-m", small_folder, "-d", f"file:{tmp_path / 't.txt'}", "--json", tmp_path / "r.json"]


def rows(common) -> list[dict]:
    return json.loads(common[-1].read_text())["rows"]


SHORT = ("--context", 640, "--windows", 1, "--needle", 0)


def test_a_tier_alone_can_be_asked_for(common):
    """It was measured, and the command said that nothing could be."""
    words = ("spectral:tier=hot,exact_bits=8", "spectral:tier=hot")
    assert sq("compare", *words, *common, *SHORT) == 0
    eight, sixteen = (r for r in rows(common) if r["method"] == "spectral")
    assert eight["options"] == {"tier": "hot", "exact_bits": 8} and sixteen["options"] == {"tier": "hot"}
    assert eight["whole_cache_ratio"] > 1.2 * sixteen["whole_cache_ratio"]
    assert eight["payload_ratio"] == sixteen["payload_ratio"] and eight["kl_nats"] != sixteen["kl_nats"]


def test_a_method_that_cannot_be_measured_ends_with_2_beside_those_that_always_are(common, capsys):
    assert sq("compare", "spectral:bound=0.01", *common, *SHORT) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "None of the methods that were named could be measured" in said


def test_what_is_given_beside_quick_holds(common):
    assert sq("compare", "turboquant:bits=3", *common, "--quick", *SHORT[2:]) == 0
    row = rows(common)[0]
    assert (row["n_windows"], row["context"], row.get("needle")) == (1, 768, None)
