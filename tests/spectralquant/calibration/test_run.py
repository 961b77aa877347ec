"""A whole calibration of a small model: determinism, resuming after a kill, tiers, refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.checkpoint import EVERY
from spectralquant.calibration.options import CalibrationSettings, parse_targets
from spectralquant.calibration.targets import parse_target
from spectralquant.errors import InputError, SourceError
from spectralquant.models.load import load_model
from spectralquant.profile.model import CalibrationProfile
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

SETTINGS = CalibrationSettings(
    steps=30, window=96, block=32, held_out_windows=1, held_out_window=512, targets={"cold": parse_target("ratio=12")}
)


@pytest.fixture(scope="module")
def text(small):
    return tokenize(small.tokenizer, load_text("builtin:pydoc"), 20_000)


@pytest.fixture(scope="module")
def whole(small, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("profiles") / "whole"
    return calibrate_model(small, text, SETTINGS, text_name="pydoc", out=out)


def stable(profile):
    return profile.sidecar.model_dump(exclude={"run"})


def test_same_seed_same_bytes(small, text, whole, tmp_path):
    again = calibrate_model(small, text, SETTINGS, text_name="pydoc", out=tmp_path / "again")
    assert again.path.with_suffix(".safetensors").read_bytes() == whole.path.with_suffix(".safetensors").read_bytes()
    assert stable(again) == stable(whole)


def test_profile_round_trip(whole):
    loaded = CalibrationProfile.load(whole.path)
    assert stable(loaded) == stable(whole)
    assert torch.equal(loaded.tier("cold").key.analysis, whole.tier("cold").key.analysis)
    head = loaded.head(1, 0, "value")
    assert head.basis.shape == (16, 16) and head.rank <= 16 and head.entropy > 0


def test_target_ratio_is_met_and_measured_on_other_text(whole):
    tier = whole.sidecar.tiers["cold"]
    assert tier.predicted_ratio == pytest.approx(12, rel=0.05)
    assert tier.measured["payload_ratio"] == pytest.approx(12, rel=0.35)
    assert tier.measured["kl_nats"] > 0
    assert not list(whole.path.parent.glob("*.partial"))


def test_merged_halves_give_the_whole(small, text):
    from spectralquant.calibration.capture.step import capture_step
    from spectralquant.calibration.sums import CalibrationSums

    windows = text.windows(96, 6)
    span = SETTINGS.span_width(small.geometry)
    sums = [CalibrationSums(small.model, small.geometry, span, None, SETTINGS) for _ in range(3)]
    for i, ids in enumerate(windows):
        step = capture_step(small.model, small.geometry, ids, far_block=32)
        sums[0].add(step, ids)
        sums[1 + i % 2].add(step, ids)
    sums[1].merge(sums[2])
    for kind in range(2):
        a, b = sums[0].moments[kind], sums[1].moments[kind]
        assert torch.allclose(a.covariance(0), b.covariance(0), rtol=1e-5, atol=1e-5 * a.covariance(0).abs().max())
        assert torch.allclose(
            a.metric_matrix(0), b.metric_matrix(0), rtol=1e-5, atol=1e-5 * a.metric_matrix(0).abs().max()
        )


KILLS = [("calibrate", 13), ("calibrate", 28), ("held-out measurement", 0)]
KILLED = """
import sys, os
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.targets import parse_target
from spectralquant.models.load import load_model
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize
def calibrate(stage, at, out):
    small = load_model({folder!r}, device="cpu", dtype="float32")
    text = tokenize(small.tokenizer, load_text("builtin:pydoc"), 20_000)
    settings = CalibrationSettings(steps=30, window=96, block=32, held_out_windows=1, held_out_window=512,
                                   targets={{"cold": parse_target("ratio=12")}})
    def progress(*now):
        if now[:2] == (stage, at):
            os.kill(os.getpid(), 9)
    calibrate_model(small, text, settings, text_name="pydoc", out=out, progress=progress)
for number, (stage, at) in enumerate({kills!r}):
    if not (child := os.fork()):
        calibrate(stage, at, f"{out}/{{number}}")
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def killed(small_folder, tmp_path_factory):
    """Profiles that processes killed with SIGKILL have begun, one at each of `KILLS`; the imports are made once for all."""
    out = tmp_path_factory.mktemp("killed")
    code = KILLED.format(folder=str(small_folder), kills=KILLS, out=str(out))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout.split() == [str(int(signal.SIGKILL))] * len(KILLS), done.stderr
    return {kill: out / str(number) for number, kill in enumerate(KILLS)}


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: f"{kill[0]}-{kill[1]}")
@pytest.mark.slow  # processes that calibrate
def test_resume_after_a_kill_gives_the_same_bytes(small_folder, text, whole, killed, kill):
    """Another process goes on: this one."""
    out = killed[kill]
    assert not out.with_suffix(".safetensors").exists() and out.with_name(f"{out.name}.partial").is_dir()
    steps = []
    calibrate_model(
        load_model(str(small_folder), device="cpu", dtype="float32"),
        text,
        SETTINGS,
        text_name="pydoc",
        out=out,
        resume=True,
        progress=lambda stage, done, total: steps.append(done) if stage == "calibrate" else None,
    )
    assert steps[0] == {13: 0, 28: EVERY, 0: SETTINGS.steps}[kill[1]]
    expected = whole.path.with_suffix(".safetensors").read_bytes()
    assert out.with_suffix(".safetensors").read_bytes() == expected


def test_resume_refuses_another_runs_checkpoint(small, text, tmp_path):
    def stop(stage, done, total):
        if (stage, done) == ("calibrate", 12):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_model(small, text, SETTINGS, out=tmp_path / "p", progress=stop)
    with pytest.raises(InputError, match="metric was 'fisher' and is 'energy'"):
        calibrate_model(small, text, replace(SETTINGS, metric="energy"), out=tmp_path / "p", resume=True)


def test_resuming_nothing_is_a_run_from_the_beginning(small, text, tmp_path):
    first = calibrate_model(small, text, SETTINGS, out=tmp_path / "p")
    assert calibrate_model(small, text, SETTINGS, out=tmp_path / "q", resume=True).id == first.id


@pytest.mark.parametrize("metric", ["attention", "energy"])
@pytest.mark.parametrize("span", ["head", "layer", "all"])
def test_metrics_and_spans(small, text, metric, span):
    profile = calibrate_model(small, text, replace(SETTINGS, metric=metric, span=span, predict="none"))
    assert profile.sidecar.tiers["cold"].measured["kl_nats"] > 0
    assert profile.tier("cold").key.analysis.shape[1] == {"head": 16, "layer": 32, "all": 96}[span]


def test_all_tiers_in_one_run_and_better_at_more_bits(small, text):
    losses = []
    for ratio in (4, 10):
        targets = parse_targets([f"warm:ratio={ratio}", f"hot:ratio={ratio}", "cold:ratio=12"], ("cold", "warm", "hot"))
        profile = calibrate_model(small, text, replace(SETTINGS, tiers=("cold", "warm", "hot"), targets=targets))
        measured = {name: tier.measured for name, tier in profile.sidecar.tiers.items()}
        for name in ("warm", "hot"):
            assert measured[name]["payload_ratio"] == pytest.approx(ratio, rel=0.15)
        losses.append({name: m["kl_nats"] for name, m in measured.items()})
    assert losses[0]["warm"] < losses[1]["warm"] and losses[0]["hot"] < losses[1]["hot"]


def test_quality_target_is_kept_on_the_search_windows(small, text):
    loose = calibrate_model(small, text, replace(SETTINGS, targets={"cold": parse_target("kl=0.012")}))
    tight = calibrate_model(small, text, replace(SETTINGS, targets={"cold": parse_target("kl=0.002")}))
    assert tight.sidecar.tiers["cold"].predicted_ratio < loose.sidecar.tiers["cold"].predicted_ratio
    assert tight.sidecar.tiers["cold"].measured["kl_nats"] < 0.006


def test_a_profile_of_another_model_is_refused(small, whole):
    from conftest import random_model

    from spectralquant.errors import ProfileError

    whole.require_model(small.model)
    other = random_model("llama", num_hidden_layers=3)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    with pytest.raises(ProfileError, match=r"calibrated on small-random .*not on other"):
        whole.require_model(other, "other")


def test_too_little_text_says_how_many_steps_fit(small, text):
    short = replace(text, ids=text.ids[:3000])
    with pytest.raises(SourceError, match=r"use --steps 20 or fewer"):
        calibrate_model(small, short, SETTINGS)


def test_time_is_recorded(whole):
    assert set(whole.sidecar.run["stages_s"]) >= {"capture", "bases", "cold tier"}
    assert os.path.getmtime(whole.path.with_suffix(".json")) <= time.time()
