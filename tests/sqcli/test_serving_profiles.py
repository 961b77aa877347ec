"""`sq calibrate --for serving`: what it prints and writes, and that its profile is for nothing else."""

from __future__ import annotations

import json

from commands_for_tests import sq

FEW = ("--steps", 3, "--window", 384, "--held-out", 1, "--held-out-window", 384, "--data", "builtin:pydoc", "--quiet")


def test_a_profile_for_serving(small_folder, tmp_path, capsys):
    out = tmp_path / "serving"
    made = ("--for", "serving", "--tier", "cold,hot", "--target", "cold:ratio=6", "--target", "hot:ratio=3")
    assert sq("calibrate", "--model", small_folder, *made, *FEW, "--out", out) == 0
    side = json.loads(out.with_suffix(".json").read_text())
    assert side["serving"] == {"pairs": "halves", "backwards": False}
    assert side["calibration"]["predict"] == "none"
    capsys.readouterr()
    assert sq("inspect", f"{out}.json") == 0
    said = capsys.readouterr().out
    assert "rotary.frequencies" in said and "serving engines" in said.replace("\n", " ")
    assert sq("compare", "none", "--model", small_folder, "--profile", out, "--quick", "--quiet") == 2
    assert "--for serving" in capsys.readouterr().err.replace("\n", " ")


def test_what_serving_cannot_have(small_folder, tmp_path, capsys):
    for more in (("--predict", "tokens"), ("--tier", "warm")):
        assert sq("calibrate", "--model", small_folder, "--for", "serving", *more, *FEW, "--out", tmp_path / "p") == 2
        assert "cold,hot" in capsys.readouterr().err.replace("\n", " ")
    assert sq("calibrate", "--for", "servin", "--out", tmp_path / "p") == 2
    assert "serving" in capsys.readouterr().err
