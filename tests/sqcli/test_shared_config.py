"""A configuration file serves many runs: flags win over it, and what one run does not use does not end it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from commands_for_tests import SENTENCE, sq

from sqcli.refusals.sources import chosen, flags_win, given
from sqcli.refusals.study_parts import parts_of
from sqcli.root import command_line

ROOT = Path(__file__).resolve().parents[2]
BASELINE = str(ROOT / "profiles/baselines/smoke.json")
COMMANDS = command_line()


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes the file, as one table of a command."""
    monkeypatch.chdir(tmp_path)

    def write(command: str, **options: object) -> list[str]:
        lines = [f"{name} = {json.dumps(value)}" for name, value in options.items()]
        (tmp_path / "sq.toml").write_text("\n".join([f"[{command}]", *lines]))
        return [command, "--config", str(tmp_path / "sq.toml")]

    return write


def context_of(words: list[str]) -> typer.Context:
    return COMMANDS.commands[words[0]].make_context(words[0], words[1:], parent=COMMANDS.make_context("sq", words))


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_where_a_value_is_from(config):
    words = config("compare", windows=3, quick=True)
    context = context_of([*words, "h2o", "--context", "768"])
    assert [given(context, name) for name in ("context", "windows", "needle")] == [True, False, False]
    assert [chosen(context, name) for name in ("context", "windows", "needle")] == [True, True, False]


def test_of_options_that_exclude_each_other_flags_win(config):
    words = config("profile", model="m")
    assert flags_win(context_of([*words, "--shape", "x"][:3]), shape=None, model="m") == (None, "m")
    assert flags_win(context_of([*words, "--shape", "qwen2.5-7b"]), shape="s", model="m") == ("s", None)
    both = context_of([*words, "--shape", "qwen2.5-7b", "--model", "n"])
    assert flags_win(both, shape="s", model="n") == ("s", "n"), "two flags still contradict each other"


def test_the_gate_takes_its_mode_from_the_flag(config, capsys):
    words = config("gate", run="smoke", resume=True, save="kept.json", baseline=BASELINE)
    assert sq(*words, "--current", BASELINE) == 0
    assert not Path("kept.json").exists() and "resume" not in said(capsys)
    assert sq(*words, "--current", BASELINE, "--against", ".") == 2
    assert "not --current and --against" in said(capsys)


def test_the_gate_without_a_baseline_says_so_though_the_file_names_one_to_save_to(config, capsys):
    assert sq(*config("gate", save="kept.json"), "--current", BASELINE) == 2
    assert "--baseline FILE is missing" in said(capsys)


def test_an_interleaved_gate_reads_no_baseline_of_the_file(config, capsys):
    words = config("gate", baseline="nowhere.json", update_baseline=True)
    assert sq(*words, "--against", "nowhere") == 2
    assert "--against nowhere is not an install" in said(capsys)


def test_a_shape_wins_over_the_model_of_the_file(config):
    words = config("profile", model="nowhere")
    assert sq(*words, "--shape", "qwen2.5-7b", "--context", 2048, "--batch", 1, "--device", "cpu", "-q") == 0


def test_a_model_of_the_file_does_not_end_a_run_of_generate(config, capsys):
    words = config("profile", model="nowhere")
    assert sq(*words, "--generate", "--context", "x") == 2
    assert "--context 'x' is not a list" in said(capsys)
    assert sq("profile", "--generate", "--model", "nowhere") == 2
    assert "--model is not for it" in said(capsys)


@pytest.mark.parametrize("command", ["pack", "generate"])
def test_a_prompt_wins_over_the_file_that_the_configuration_names(command, config, capsys):
    words = config(command, file="nowhere.txt", profile="none")
    assert sq(*words, *(("-o", "x.sqkv") if command == "pack" else ()), "A prompt.") == 2
    assert "There is no profile none.json" in said(capsys)
    assert sq(*words, *(("-o", "x.sqkv") if command == "pack" else ())) == 2
    assert "nowhere.txt" in said(capsys)


def test_layers_and_heads_of_the_file_are_for_one_profile(config, small_profile, tmp_path):
    small_profile.save(tmp_path / "p")
    rows = {}
    for name, table, flags in (
        ("plain", {}, ()),
        ("head", {"head": 0}, ()),
        ("layer", {"layer": 0}, ()),
        ("diff", {"layer": 0, "head": 0}, ("--diff", "p")),
    ):
        assert sq(*config("show", **table), "p", *flags, "--json", "r.json") == 0
        rows[name] = len(json.loads(Path("r.json").read_text())["rows"])
    assert rows["plain"] == rows["head"] == rows["diff"] > rows["layer"]


def test_parts_of_the_file_are_not_for_studies_that_have_none(config, capsys):
    words = config("study", part=["small"])
    assert parts_of(context_of([*words, "gate", "--out", "x"]), "gate", ["small"]) is None
    assert parts_of(context_of([*words, "serving", "--out", "x"]), "serving", ["small"]) == ["small"]
    assert sq(*words, "gate", "--part", "small", "--out", "x") == 2
    assert "has no parts" in said(capsys)


def test_a_check_takes_the_model_of_the_profile_and_writes_no_profile(
    config, small_profile, small_folder, tmp_path, capsys
):
    small_profile.sidecar.model.name, before = str(small_folder), small_profile.sidecar.model.name
    try:
        small_profile.save(tmp_path / "p")
    finally:
        small_profile.sidecar.model.name = before
    (tmp_path / "long.txt").write_text(SENTENCE * 160)
    words = ("--profile", "p", "--check", "file:long.txt", "--json", "r.json")
    code = sq(*config("calibrate", out="p", purpose="serving"), *words)
    assert code in (0, 1), said(capsys)
    assert json.loads(Path("r.json").read_text())["rows"]
    assert sq(*config("calibrate", profile="p"), "--steps", 0) == 2
    assert "profile" not in said(capsys).partition(" See ")[0].lower()
    assert sq("calibrate", "--profile", "p") == 2
    assert "--profile is for --check" in said(capsys)


@pytest.mark.parametrize(
    ("quick_in_file", "sentences", "wanted"),
    [(True, 180, "5 windows of 4096"), (False, 40, "2 windows of 768")],
    ids=["the file means both", "the flag is stronger"],
)
def test_quick_and_the_windows_of_the_file(
    quick_in_file, sentences, wanted, config, small_profile, small_folder, tmp_path, capsys
):
    small_profile.save(tmp_path / "p")
    table = {"windows": 5, "context": "4096"} | ({"quick": True} if quick_in_file else {})
    (tmp_path / "few.txt").write_text(SENTENCE * sentences)
    words = ("h2o", "-p", "p", "-m", small_folder, "-d", "file:few.txt", *(() if quick_in_file else ("--quick",)))
    assert sq(*config("compare", **table), *words) == 2
    assert wanted in said(capsys)
