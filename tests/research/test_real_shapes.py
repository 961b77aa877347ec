"""The study of models of real size, on models of no size."""

import json

import pytest
import torch

from research.shapes import TIERS, ShapeStudy, failures, shape_study
from spectralquant.errors import InputError
from sqcli.app import main

SMALL = "random:smollm2-135m:layers=2,heads=4,kv_heads=2,hidden=256,intermediate=128,vocab=300"
TOO_FEW_IDS = "random:custom:layers=1,heads=2,kv_heads=1,head_dim=32,vocab=40"


@pytest.mark.slow
def test_every_step_is_timed_and_what_fails_is_named():
    study = ShapeStudy(steps=2, prompt=300, fed=3, generated=3)
    saved = []
    result = shape_study((TOO_FEW_IDS, SMALL), study, torch.device("cpu"), "bfloat16", saved.append)
    mine = [r for r in result["rows"] if r["model"] == SMALL]
    expected = [("load", None), ("calibrate", None), ("read", "none")]
    expected += [(step, tier) for tier in TIERS for step in ("read", "generate")] + [("pack", None)]
    assert [(r["step"], r.get("tier")) for r in mine] == expected
    assert all(r["ok"] and r["seconds"] > 0 and r["peak_memory_bytes"] > 0 for r in mine)
    read = {r["tier"]: r for r in mine if r["step"] == "read"}
    assert read["exact"]["logit_distance"] < 0.01 and read["exact"]["top1"] == 1
    assert all(read[tier]["coded_tokens"] == 124 for tier in TIERS)
    assert all(r["new_tokens"] == 3 for r in mine if r["step"] == "generate")
    assert [len(s["rows"]) for s in saved] == list(range(1, len(result["rows"]) + 1)), "saved after every step"
    assert result["provenance"]["dtype"] == "bfloat16" and "git_commit" in result["provenance"]
    (line,) = failures(result)
    assert line.startswith(f"{TOO_FEW_IDS} calibrate: ")


def test_a_shape_that_is_not_there_stops_before_anything_runs():
    saved = []
    with pytest.raises(InputError, match="no shape"):
        shape_study((SMALL, "random:llama-9"), ShapeStudy(), torch.device("cpu"), "float32", saved.append)
    assert not saved


def test_the_command_ends_with_1_where_a_step_fails(tmp_path, monkeypatch, capsys):
    out = tmp_path / "shapes.json"
    command = ["sq", "study", "shapes", "--out", str(out), "--shape", TOO_FEW_IDS, "--device", "cpu", "--quiet"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert [r["ok"] for r in json.loads(out.read_text())["rows"]] == [True, False]
    assert "failed" in capsys.readouterr().out
