"""Several processes calibrate one model: the profile of one, a killed process, and going on with another number of them."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
import torch

from spectralquant import processes as several
from spectralquant.calibration.first_pass import shares
from spectralquant.errors import InputError
from spectralquant.files import read_json
from spectralquant.processes import Processes, processes
from spectralquant.profile.model import CalibrationProfile
from sqcli.app import main

OPTIONS = ["--device", "cpu", "--window", "384", "--held-out", "1", "--held-out-window", "384", "--target", "ratio=12"]
KILLER = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # torchrun's, which comes a moment after the loss, waits for the farewell
from torch import distributed
farewell = distributed.destroy_process_group
def signalled(*args, **options):
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    time.sleep(1)
    return farewell(*args, **options)
distributed.destroy_process_group = signalled
import spectralquant.calibration.first_pass as first_pass
capture = first_pass.capture_step
count = 0
def counted(*args, **options):
    global count
    count += 1
    if os.environ["RANK"] == "1" and count == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return capture(*args, **options)
first_pass.capture_step = counted
from sqcli.app import main
main(sys.argv[1:])
"""


def launch(size, arguments, *, program=("-m", "sqcli")):
    """`torchrun --standalone --nproc-per-node SIZE -m sqcli …`."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return subprocess.run([*run, *program, *arguments], check=False, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def command(small_folder):
    return ["calibrate", "--model", str(small_folder), "--steps", "60", *OPTIONS]


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "p"
    with pytest.raises(SystemExit) as end:
        main([*command, "--out", str(out)])
    assert not end.value.code
    return CalibrationProfile.load(out)


def require_equal(profile, other, tolerance=1e-3):
    """Spectra and ranks agree, and the tiers code alike: only the order of additions differs."""
    ours, theirs = profile.heads, other.heads
    assert torch.allclose(ours.variance, theirs.variance, rtol=tolerance, atol=tolerance * theirs.variance.max())
    assert (ours.rank - theirs.rank).abs().max() <= 1
    for kind in ("key", "value"):
        a, b = getattr(profile.tier("cold"), kind).variance, getattr(other.tier("cold"), kind).variance
        assert abs(len(a) - len(b)) <= 1
        n = min(len(a), len(b))
        assert torch.allclose(a[:n], b[:n], rtol=10 * tolerance, atol=tolerance * b.max())
    assert profile.sidecar.text == other.sidecar.text


@pytest.mark.slow  # two processes that import torch and load a model each
def test_two_processes_give_the_profile_of_one(command, alone, tmp_path):
    done = launch(2, [*command, "--out", str(tmp_path / "p"), "--json", str(tmp_path / "r.json")])
    assert done.returncode == 0, done.stderr
    profile = CalibrationProfile.load(tmp_path / "p")
    require_equal(profile, alone)
    assert profile.sidecar.run["processes"] == 2 and profile.sidecar.run["reduced_bytes"] > 0
    assert len(re.findall("Calibrated|Profile", done.stdout)) == len(set(re.findall("Calibrated|Profile", done.stdout)))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["p.json", "p.safetensors", "r.json"]


@pytest.mark.slow  # two and then four processes
def test_a_killed_process_ends_the_run_and_four_go_on(command, alone, tmp_path):
    program = tmp_path / "killer.py"
    program.write_text(KILLER.format(at=28))
    out = ["--out", str(tmp_path / "p")]
    killed = launch(2, [*command, *out], program=(str(program),))
    assert killed.returncode != 0 and not (tmp_path / "p.json").exists()
    assert "lost another one" in killed.stderr and "--resume" in killed.stderr and "Interrupted." in killed.stderr
    state = read_json(tmp_path / "p.partial" / "state.json", "the checkpoint")
    assert state["step"] == 50  # 25 steps of each process were finished and added up
    resumed = launch(4, [*command, *out, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    require_equal(CalibrationProfile.load(tmp_path / "p"), alone)


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_steps_are_shared_evenly_and_the_first_does_the_kept_ones(size):
    parts = shares(range(50, 75), size, range(0, 75, 5))
    assert sorted(index for part in parts for index in part) == list(range(50, 75))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 + size // 4
    assert set(range(50, 75, 5)) & set(parts[0]) == set(sorted(range(50, 75, 5))[: len(parts[0])])


def test_small_tensors_of_a_kind_are_added_up_together(monkeypatch):
    monkeypatch.setattr(several, "BUCKET", 100)
    single, whole = [torch.zeros(n) for n in (10, 15, 1, 40, 2)], [torch.tensor(n) for n in range(2)]
    parts = list(several._buckets([single[0], whole[0], *single[1:], whole[1]]))
    assert [[t.numel() for t in part] for part in parts] == [[10, 15], [1], [40], [2], [1, 1]]
    assert sorted(id(t) for part in parts for t in part) == sorted(map(id, single + whole))
    for part in parts:
        assert len({(t.device, t.dtype) for t in part}) == 1
        assert len(part) == 1 or sum(t.numel() * t.element_size() for t in part) <= 100


def test_making_connections_is_timed(monkeypatch):
    monkeypatch.setattr(several.distributed, "reduce", lambda tensor, dst, group: time.sleep(0.02))
    own = Processes(0, 2)
    own.connect("cpu")
    assert 0.02 <= own.connecting < 20


def test_a_half_launched_process_is_told_how(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="torchrun"), processes("cpu"):
        pass
