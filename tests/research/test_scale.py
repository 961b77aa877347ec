"""The study of calibration at real sizes: its parts on small models, and what a results file keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from research.scale.predicted import predicted_rows
from research.scale.quality import QualityRun, QualityStudy, kl_at
from research.scale.runs import calibration, seconds_per_step, streamed, together
from research.scale.study import joined, scale_study
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

SMALL = "random:custom:layers=2,heads=4,kv_heads=2,head_dim=16,vocab=400"
NOTHING = (lambda: None, lambda result: None)


def test_quality_rows_are_measured_and_kept_beside_others(small):
    text = tokenize(small.tokenizer, load_text("builtin:pydoc"), 12_000)
    study = QualityStudy(
        steps=(2, 4, 99),
        usual=4,
        window=384,
        windows=1,
        scored=512,
        middle=12,
        factors=(0.7, 1.4),
        metrics=("energy",),
        shrinkage=(0.3,),
        budgets=(60_000,),
        forms=("no energy dropped",),
    )
    other = {"part": "quality", "model": "another", "payload_ratio": 9.0, "kl_nats": 0.1, "tier_bytes": 1}
    older = [other, {"part": "quality", "model": small.name, "varied": "steps", "steps": 99}]
    saved = []
    parts = ["steps", "forms"]
    result = scale_study(parts, older, lambda: (small, text), saved.append, model=small.name, quality=study)
    rows = [r for r in result["rows"] if r["model"] == small.name]
    assert len(result["rows"]) == len(rows) + 1 == len(saved) + 1
    most = len(text.windows(384)) * 80 // 147  # 99 steps are more than the text has
    both = {"dense", "two-level"}
    assert {(r["varied"], r["variant"], r["metric"], r["basis"], r["steps"]) for r in rows} == {
        *(("steps", "", "fisher", "dense", steps) for steps in (2, 4, most)),
        *(("shrinkage", "0.3", "fisher", "dense", steps) for steps in (2, 4)),
        *(("size", "0.06 MB", "fisher", basis, 4) for basis in both),
        ("bases", "", "fisher", "two-level", 4), ("form", "no energy dropped", "fisher", "two-level", 4),
        ("metric", "", "energy", "dense", 4),
    }  # fmt: skip
    assert all(r["kl_nats"] > 0 and r["measured"] for r in rows)
    size = {
        (r["varied"], r["basis"]): r["tier_bytes"]
        for r in rows
        if r["steps"] == 4 and r["varied"] in ("size", "bases", "steps")
    }
    assert size["size", "two-level"] < size["bases", "two-level"] and size["size", "dense"] < size["steps", "dense"]
    assert result["summary"]["seconds_8b_100_steps"] is None
    curve = [r for r in rows if r["varied"] in ("steps", "shrinkage")]
    assert [r["varied"] for r in curve] == ["steps"] * 6 + ["shrinkage"] * 4  # what may be cut off comes last
    few = QualityRun(small, text, replace(study, steps=(2,), usual=2), lambda *_: None, curve=True)
    of_few = [r["tier_bytes"] for case in few.rows() for r in case if r["varied"] == "shrinkage"]
    assert of_few == [r["tier_bytes"] for r in curve if r["varied"] == "shrinkage" and r["steps"] == 2]
    cut = [r for r in result["rows"] if r.get("metric") != "energy"]  # as a run that was stopped leaves it
    again = scale_study(parts, cut, lambda: (small, text), saved.append, model=small.name, quality=study, anew=False)
    measured_anew = [r for r in again["rows"] if r not in cut]
    assert len(measured_anew) == 2 and {r["metric"] for r in measured_anew} == {"energy"}


def test_rows_of_files_beside_each_other_are_joined():
    first = [
        {"part": "8b", "a": 1},
        {"part": "quality", "model": "x", "varied": "steps", "a": 2},
        {"part": "quality", "model": "y", "varied": "steps", "a": 3},
        {"part": "quality", "model": "y", "varied": "metric", "a": 6},
    ]
    second = [{"part": "quality", "model": "y", "varied": "shrinkage", "a": 4}, {"part": "scaling", "a": 5}]
    assert [r["a"] for r in joined(first, [second])] == [1, 2, 6, 4, 5]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The same steps by one process, by two and by four."""
    return together(tmp_path_factory.mktemp("together") / "rows.json", 4, SMALL, 8, 384)


def test_several_processes_against_one(shared):
    rows = shared
    assert all(row["ok"] for row in rows), rows[0]["error"]
    assert [row["gpus"] for row in rows] == [2, 4]
    for row in rows:
        assert row["added_bytes"] > 0 and row["efficiency"] > 0 and row["deterministic"]
        assert row["largest_difference_of_sums"] < 1e-5 and row["largest_difference_of_ranks"] == 0
        assert len(row["step_s_of_processes"]) == row["gpus"] and min(row["step_s_of_processes"]) > 0
        assert (
            0 < row["wait_s"] + row["add_up_s"] < row["seconds_shared"] and 0 <= row["connect_s"] < 60
        )  # milliseconds: gloo may need half of one


def test_runs_on_gpus_that_are_not_here_are_said(small):
    older = [{"part": "scaling", "gpus": 2, "model": "random:x", "ok": True, "efficiency": 0.9}]
    result = scale_study(["scaling", "70b"], older, lambda: None, lambda result: None)
    assert [r["ok"] for r in result["rows"]] == [False, False]  # what was asked for anew replaces what was there
    assert result["summary"]["scaling_efficiency_2"] is None and result["summary"]["seconds_70b_100_steps"] is None
    assert "no GPU" in result["summary"]["seconds_70b_100_steps_is"]
    again = scale_study(["scaling"], older, lambda: None, lambda result: None, anew=False)
    assert again["summary"]["scaling_efficiency_2"] == 0.9


def test_every_predicted_figure_is_marked():
    rows = predicted_rows(0.7, 6.0)
    assert all(r["predicted"] for r in rows) and len(rows) == 5
    times = [r["seconds_100_steps_one_card"] for r in rows]
    assert times == sorted(times) and times[1] == pytest.approx(70)
    assert rows[1]["weights_bytes"] == 2 * 8_030_261_248


def test_kl_between_points():
    rows = [{"payload_ratio": 20.0, "kl_nats": 0.001}, {"payload_ratio": 80.0, "kl_nats": 0.004}]
    assert kl_at(rows, 40) == pytest.approx(0.002)
    assert kl_at(rows, 100) is None


def test_every_field_of_a_row_is_declared(shared, tmp_path):
    """What a run on GPUs would find out only at its end; a calibration stands beside its plan."""
    options = ("--model", SMALL, "--window", "384", "--steps", "4", "--held-out", "1", "--held-out-window", "512")
    calibrated = calibration((*options, "--device", "cpu", "--offline"), tmp_path / "p", 4)
    assert calibrated["ok"], calibrated["error"]
    assert calibrated["plan"]["stages"]["capture"] > 0 and seconds_per_step(calibrated) > 0
    rows = [{"part": "70b", **calibrated}, *({"part": "scaling", **row} for row in shared)]
    older = [{**row, "peak_bytes": 1, "plan_error": 0.0} for row in rows]
    result = scale_study(["predicted"], older, lambda: None, lambda result: None)
    assert len(result["rows"]) == 8
    assert result["summary"]["scaling_efficiency_2"] > 0
    assert "predicted from 4 steps" in result["summary"]["seconds_70b_100_steps_is"]


def test_a_model_whose_weights_lie_on_the_host(tmp_path):
    row = streamed(SMALL, 2, 384, tmp_path / "row.json")
    assert row["ok"], row["error"]
    assert row["weights_on_card_bytes"] == 0 < row["weights_on_host_bytes"] and row["seconds"] > 0
    result = scale_study(["predicted"], [{"part": "70b-one-card", **row, "peak_bytes": 1, "plan_error": 0.1}], *NOTHING)
    assert result["summary"]["seconds_per_step_70b_one_card"] >= 0 and result["summary"]["plan_error_share"] == 0.1


def test_a_part_that_takes_too_long_is_ended_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr("research.scale.runs.MOST_SECONDS", 1)
    (row,) = together(tmp_path / "rows.json", 2, SMALL, 8, 384)
    assert not row["ok"] and "ended after 1 s" in row["error"]
