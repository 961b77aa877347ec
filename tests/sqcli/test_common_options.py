"""Every command takes --json, --csv, --quiet and --config, and each of them works."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from commands_for_tests import COMMANDS, SENTENCE, Place, line, sq

from spectralquant.results.files import read_results
from sqcli.output import Output
from sqcli.root import command_line

ROOT = Path(__file__).resolve().parents[2]
COMMON = ("--json", "--csv", "--quiet", "--config")
GROUP = command_line()


@pytest.fixture(scope="module")
def place(small_profile, small_folder, tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("common")
    small_profile.save(folder / "profile")
    (folder / "long.txt").write_text(SENTENCE * 160)
    (folder / "results.json").write_text((ROOT / "profiles/results/gate-simulation.json").read_text())
    where = Place(folder / "profile", small_folder, folder)
    assert sq("pack", "-p", where.profile, "-m", small_folder, "--file", where.text, "-o", where.packet, "-q") == 0
    return where


def test_there_is_a_line_to_try_for_every_command():
    assert set(COMMANDS) == set(GROUP.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_lists_them(name):
    options = [option for parameter in GROUP.commands[name].params for option in parameter.opts]
    assert set(COMMON) <= set(options)
    assert all(p.help for p in GROUP.commands[name].params if set(p.opts) & set(COMMON))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_broken_by_the_terminal_alone(name):
    paragraphs = GROUP.commands[name].help.split("\n\n")
    assert len(paragraphs) > 1 or name == "doctor"
    assert not [p for p in paragraphs if "\n" in p or "  " in p]


def test_the_root_takes_a_config_for_any_command(tmp_path, capsys):
    config = tmp_path / "sq.toml"
    config.write_text("[gate]\nlimits = 'nowhere.toml'\n")
    baseline = str(ROOT / "profiles/baselines/smoke.json")
    for words in (["--config", config, "gate"], ["gate", "--config", config], ["gate", f"--config={config}"]):
        assert sq(*words, "--baseline", baseline, "--current", baseline) == 2
        assert "nowhere.toml" in capsys.readouterr().err
    assert sq("gate", "--config", config, "--limits", "mine.toml", "-b", baseline, "-c", baseline) == 2
    assert "mine.toml" in capsys.readouterr().err, "flags win"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_config_gives_the_defaults_of_every_command(name, place, tmp_path):
    config = tmp_path / "sq.toml"
    config.write_text(f'[{name}]\nquiet = true\ncsv = "rows.csv"\n')
    words = line(name, place)[1:]
    context = GROUP.commands[name].make_context(name, [*words, "--config", str(config)], parent=root_context())
    assert context.params["quiet"] is True and context.params["csv"] == "rows.csv"
    context = GROUP.commands[name].make_context(
        name, [*words, "--config", str(config), "--csv", "mine.csv"], parent=root_context()
    )
    assert context.params["csv"] == "mine.csv"


def root_context():
    return GROUP.make_context("sq", [*COMMANDS][:1])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_writes_json_and_csv_and_is_quiet(name, place, tmp_path, capsys):
    files = {kind: tmp_path / f"r.{kind}" for kind in ("json", "csv")}
    words = line(name, place)
    if name == "study":
        words = words[: words.index("--out")]
    if name == "serve-check":
        pytest.skip("needs vLLM: tests/serving runs it")
    if name == "gate":
        baseline = str(ROOT / "profiles/baselines/smoke.json")
        words = ["gate", "--baseline", baseline, "--current", baseline]
    code = sq(*words, "--json", files["json"], "--csv", files["csv"], "--quiet")
    said = capsys.readouterr().err
    assert code == 0 or name == "doctor", said
    assert said == ""
    result = json.loads(files["json"].read_text())
    assert result["kind"].startswith("spectralquant.") and result["provenance"]["versions"]["torch"]
    with files["csv"].open() as handle:
        table = list(csv.DictReader(handle))
    assert len(table) == len(result["rows"]) > 0
    assert set(table[0]) == {key for row in result["rows"] for key in row}


def test_results_are_written_before_they_are_drawn(place, tmp_path):
    def broken():
        raise RuntimeError("no such chart")

    result = read_results(place.folder / "results.json")
    with pytest.raises(RuntimeError, match="no such chart"):
        Output(json_file=str(tmp_path / "kept.json"), quiet=True).finish(result, view=broken)
    assert read_results(tmp_path / "kept.json").rows == result.rows
