"""Files that are no profile are named for what they are; what comes next is what the profile can do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands_for_tests import sq

from sqcli.terminal.outcome import next_text

STORED = Path(__file__).resolve().parents[2] / "profiles" / "results" / "durations.json"


@pytest.mark.parametrize("command", ["show", "inspect"])
def test_results_are_not_a_damaged_profile(command, capsys):
    assert sq(command, STORED) == 2
    assert "holds results of a command, not a profile" in " ".join(capsys.readouterr().err.split())


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
