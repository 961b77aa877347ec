"""Files that are no profile are named for what they are; what comes next is what the profile can do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands_for_tests import sq
from torch.cuda import is_available as cuda

from spectralquant.models.builtin.folder import builtin_folder
from spectralquant.results.quality import MatchedRow
from sqcli.terminal.compare import against
from sqcli.terminal.outcome import next_text

RESULTS = Path(__file__).resolve().parents[2] / "profiles" / "results"
STORED = RESULTS / "durations.json"


@pytest.mark.parametrize("command", ["show", "inspect"])
def test_results_are_not_a_damaged_profile(command, capsys):
    assert sq(command, STORED) == 2
    assert "holds results of a command, not a profile" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "x"),
        ("compare", "h2o"),
        ("pack", "--file", STORED, "--out", "x.sqkv"),
        ("calibrate", "--check", "builtin:pydoc"),
        ("serve-check", "builtin:smollm2-135m"),
        ("study", "cache", "--out", "x.json"),
        ("study", "serving", "--out", "x.json"),
        ("study", "quality", "--out", "x.json"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_every_command_that_takes_a_profile_names_other_files(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sq(*words, "--profile", STORED) == 2
    assert "holds results of a command, not a profile" in " ".join(capsys.readouterr().err.split())


def test_what_is_wrong_with_the_model_is_told_before_what_this_machine_lacks(tmp_path, capsys):
    assert sq("serve-check", tmp_path / "none") == 2
    assert "is not a folder with a config.json" in " ".join(capsys.readouterr().err.split())
    assert sq("serve-check", "builtin:smollm2-135m", "--codec-device", "tpu") == 2
    assert "not one of cpu, cuda" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prefix", 5000), "--prefix needs sequences of 5,040 tokens, and the model has 4,096 positions"),
        (("--long", 8192), "--long needs sequences of 8,192 tokens, and the model has 4,096 positions"),
        (
            ("--prefix", 1000, "--max-model-len", 512),
            "--prefix needs sequences of 1,040 tokens, and --max-model-len is 512",
        ),
        (("--max-model-len", 9999), "--max-model-len 9,999 is beyond the model's 4,096 positions"),
        (("--new-tokens", 4000), "--prefix needs sequences of 5,032 tokens"),
        (("--batch", 4, "--prefix", 128, "--max-model-len", 512), "--batch needs sequences of 664 tokens"),
        (("--trace-share", "inf"), "--trace-share"),
        (("--trace-share", "nan"), "--trace-share"),
        (("--trace-share", 2), "--trace-share"),
        (("--keep", ""), "--keep is empty"),
        (("--keep", "file"), "file is a file"),
        (("--keep", "file/below"), "file is a file"),
        pytest.param(
            ("--codec-device", "cuda"), "needs a GPU", marks=pytest.mark.skipif(cuda(), reason="a GPU is there")
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_serve_check_refuses_what_cannot_work_before_it_asks_for_vllm(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"model_type": "llama", "max_position_embeddings": 4096})
    )
    (tmp_path / "file").write_text("x")
    assert sq("serve-check", "model", *words) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.model
def test_a_built_in_model_that_lies_here_is_judged_before_vllm(capsys):
    builtin_folder("builtin:smollm2-135m")
    assert sq("serve-check", "builtin:smollm2-135m", "--prefix", 99_999) == 2
    assert "the model has 8,192 positions" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", [("serve-check", "builtin:smollm2-135m"), ("study", "serving", "--out", "x.json")])
def test_a_profile_for_caches_serves_nobody(command, small_profile, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_profile.save(tmp_path / "caches")
    assert sq(*command, "--profile", "caches") == 2
    assert "calibrated for caches of transformers" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("whole", "said"), [(2.5, "is 4.0 x smaller, whole caches"), (2.0, "is 16.0 x smaller")])
def test_methods_that_hold_all_in_their_budget_are_compared_by_whole_caches(whole, said):
    row = {"context": 2048, "method": "h2o", "kl_nats": 0.01, "bound": "interpolated", "payload_ratio": 2.5}
    ours = row | {"method": "spectral cold", "payload_ratio": 40.0, "whole_cache_ratio": 10.0}
    assert against(MatchedRow(**ours), MatchedRow(**row, whole_cache_ratio=whole)).endswith(said)


@pytest.mark.parametrize("command", ["show", "inspect"])
def test_a_folder_is_one(command, tmp_path, capsys):
    assert sq(command, tmp_path) == 2
    assert "is a folder" in " ".join(capsys.readouterr().err.split())


def test_a_file_that_is_there_is_not_said_to_be_missing(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("x")
    assert sq("show", tmp_path / "notes.txt") == 2
    assert "is no profile" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"kind": "spectralquant.profile"}), "\x00"])
def test_what_is_damaged_is_left_to_the_checks_of_profiles(content, tmp_path, capsys):
    (tmp_path / "p.json").write_text(content)
    assert sq("show", tmp_path / "p") == 2
    assert "results of a command" not in capsys.readouterr().err


@pytest.mark.parametrize(("tiers", "packs"), [(("cold", "hot"), True), (("warm",), False), (("hot",), False)])
def test_next_steps_are_what_the_tiers_allow(tiers, packs):
    text = next_text(Path("p"), tiers=tiers).plain
    assert ("sq pack" in text) is packs and "generate --profile p" in text


def test_sq_alone_shows_its_help_and_no_empty_message(capsys):
    assert sq() == 2
    assert "sq: ." not in capsys.readouterr().err


@pytest.mark.parametrize("folder", [".", "some.where"])
def test_inspect_of_a_folder_says_what_it_is(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.where").mkdir()
    assert sq("inspect", folder) == 2
    assert f"{folder} is a folder. Name a packet or a profile in it." in " ".join(capsys.readouterr().err.split())


def test_a_page_of_a_file_without_rows_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    raw = json.loads((RESULTS / "serving-hot-8b-h100.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps(raw | {"rows": []}))
    assert sq("report", "empty.json") == 0
    assert "empty.json has no rows" in " ".join(capsys.readouterr().err.split())
