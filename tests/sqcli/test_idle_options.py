"""An option that would change nothing is refused, whatever the command; the commands of this repository give none such."""

from __future__ import annotations

import re
import shlex

import pytest
import typer
from commands_for_tests import sq

from research.results.table import TABLE
from spectralquant.errors import InputError
from spectralquant.methods.registry import parse
from sqcli.commands.compare import _once
from sqcli.commands.study import STUDIES, study
from sqcli.refusals.study_options import READS, SOME, require_read
from sqcli.root import command_line

ROOT = command_line()


def refused(capsys, *words) -> str:
    assert sq(*words) == 2
    return " ".join(capsys.readouterr().err.split())


def test_every_study_has_its_options():
    assert set(READS) == set(STUDIES)
    assert [name for name in STUDIES if f"[bold]{name}[/bold]: " not in (study.__doc__ or "")] == []
    known = {p.name for p in ROOT.commands["study"].params}
    assert set(SOME) | {"part"} >= set().union(*READS.values()) and known >= SOME


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gate", "--windows", 3), "--windows has no effect on the gate study. Leave it out."),
        (("architectures", "--device", "cpu", "--dtype", "float32"), "--device, --dtype have no effect on the arch"),
        (("cold", "--bound", 0.01), "--bound has no effect on the cold study"),
        (("cold", "--profile", "p"), "--profile has no effect on the cold study"),
        (("packet", "-p", "p", "--steps", 3), "--steps has no effect on the packet study"),
        (("second-model", "--model", "random:smollm2-135m"), "--model has no effect on the second-model study"),
        (("tiers", "--other-data", "builtin:pydoc"), "--other-data has no effect on the tiers study"),
        (("headline", "--in-mix", "builtin:pydoc", "--more", "builtin:pydoc"), "--in-mix, --more have no effect"),
        (("calibrate-scale", "--part-of-text", "development"), "--part-of-text has no effect"),
        (("serving", "-p", "p", "--device", "cpu"), "--device has no effect on the serving study"),
        (("serving-hot", "--part", "large", "--model", "x"), "--model has no effect on the large part of serving-hot"),
        (("serving-hot", "-p", "p", "-d", "builtin:pydoc", "-d", "builtin:stdlib"), "reads one text, not 2"),
        (
            ("domains", "-d", "builtin:stdlib"),
            "compares two texts, and --data and --other-data are both builtin:stdlib",
        ),
        (("shapes", "-d", "builtin:pydoc", "-d", "builtin:stdlib"), "reads one text, not 2"),
    ],
)
def test_a_study_refuses_what_it_does_not_read(words, said, tmp_path, capsys):
    assert said in refused(capsys, "study", *words, "--out", tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def context_of(command: str, words: list[str]) -> typer.Context:
    return ROOT.commands[command].make_context(command, words, parent=ROOT.make_context("sq", [command, *words]))


def commands_of_results() -> list[list[str]]:
    """Every `sq study …` of the table, its placeholders filled."""
    each = [command for entry in TABLE for command in (*entry.before, entry.command)]
    return [shlex.split(re.sub(r"\{\w+\}", "x", c)) for c in each if c.startswith("sq study")]


@pytest.mark.parametrize("words", commands_of_results(), ids=" ".join)
def test_commands_of_results_give_no_idle_option(words):
    context = context_of("study", words[2:])
    require_read(context, context.params["name"], context.params["part"] or ())


def test_a_configuration_file_may_serve_several_studies(tmp_path):
    (tmp_path / "c.toml").write_text('[study]\nsteps = 3\nmodel = "builtin:smollm2-135m"\n')
    context = context_of("study", ["gate", "--config", str(tmp_path / "c.toml"), "--out", "x"])
    require_read(context, "gate", ())
    with pytest.raises(InputError, match="--steps has no effect"):
        words = ["gate", "--config", str(tmp_path / "c.toml"), "--out", "x", "--steps", "4"]
        require_read(context_of("study", words), "gate", ())


WITHOUT_COLD = ("calibrate", "--tier", "hot,warm", "--out", "p")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("profile", "--new-tokens", 3), "--new-tokens has no effect without --generate"),
        (("profile", "--generate", "--kernels", "x", "--bits", 2), "--kernels, --bits have no effect with --generate"),
        (("profile", "--show", "r.json", "--share", 0.2, "--seed", 3), "--share, --seed have no effect with --show"),
        (("profile", "--device-model", "h100", "--end-to-end"), "--end-to-end has no effect with --device-model"),
        (("serve-check", "m", "--long-prompts", 3), "--long-prompts has no effect without --long"),
        (("serve-check", "m", "--trace", 0, "--trace-share", 0.5), "--trace-share has no effect with --trace 0"),
        (("compare", "h2o", "--task-trials", 3), "--task-trials has no effect without --tasks"),
        (("compare", "h2o", "--task-context", "512"), "--task-context has no effect without --tasks"),
        (("unpack", "x.sqkv", "-p", "x", "--new-tokens", 3), "--new-tokens has no effect without --then"),
        (("show", "p", "--diff", "q", "--layer", 1, "--head", 0), "--layer, --head have no effect with --diff"),
        (("gate", "-b", "b", "-c", "c", "--rounds", 9), "--rounds has no effect without --against"),
        (("gate", "--against", ".", "-b", "b"), "--baseline has no effect with --against"),
        (("gate", "-b", "b", "-c", "c", "--save", "s"), "--save has no effect without --run"),
        (("gate", "-c", "c", "--save", "s"), "--save has no effect without --run"),
        (("gate", "-b", "b", "-c", "c", "--model", "x"), "--model has no effect without --run"),
        (("gate", "-b", "b", "-c", "c", "-d", "builtin:pydoc", "--device", "cpu"), "--data, --device have no effect"),
        (("gate", "-b", "b", "--run", "gpu", "--model", "x"), "--model has no effect on the suite gpu"),
        (("gate", "-b", "b", "-c", "c", "--force"), "--force has no effect without --update-baseline"),
        (("gate", "--run", "smoke", "--save", "s", "--junit", "j"), "--junit has no effect where there is no baseline"),
        (("gate", "--run", "smoke", "--save", "s", "--json", "j", "--csv", "c"), "--json, --csv have no effect where"),
        (("gate", "-c", "c", "-b", "none", "--update-baseline", "--markdown", "m"), "--markdown has no effect where"),
        ((*WITHOUT_COLD, "--span", "all", "--basis", "dense"), "--span, --basis have no effect without the cold tier"),
        ((*WITHOUT_COLD, "--shrinkage", 0.1), "--shrinkage has no effect without the cold tier"),
        (("calibrate", "--memory", "1KB", "--dry-run"), "--memory 1KB is less than 1 MB"),
        ((*WITHOUT_COLD, "--profile-budget", "20MB"), "--profile-budget has no effect without the cold tier"),
        ((*WITHOUT_COLD, "--predict", "tokens"), "--predict has no effect without the cold tier"),
        (("calibrate", "--span", "head", "--shrinkage", 0.1), "--shrinkage has no effect with --span head"),
        (("calibrate", "--span", "1", "--basis", "two-level"), "--basis has no effect with --span 1"),
        (("calibrate", "--target", "ratio=9", "--target", "cold:ratio=8"), "is the second one for the cold tier"),
        (
            ("calibrate", "--tier", "warm,all", "--target", "ratio=9", "--target", "cold:kl=0.1"),
            "second one for the cold",
        ),
        (("calibrate", "--hot-bits", "even", "--tier", "cold,warm"), "--hot-bits has no effect without the hot tier"),
        (("calibrate", "-p", "p", "--check", "builtin:pydoc", "--steps", 3), "--steps has no effect with --profile"),
        (("calibrate", "-p", "p", "--check", "builtin:pydoc", "--dry-run"), "--dry-run has no effect with --profile"),
        (
            ("calibrate", "-p", "p", "--check", "builtin:pydoc", "--out", "q", "--resume"),
            "--out, --resume have no effect",
        ),
        (
            ("generate", "x", "--tier", "exact", "--working-set", "1MB"),
            "--working-set has no effect where no block comes",
        ),
        (("generate", "x", "--exact-bits", 4, "--model", "nowhere"), "--exact-bits 4 is not one of 8, 16"),
        (("generate", "x", "--seed", 5, "--model", "nowhere"), "--seed has no effect without --sample"),
        (
            ("generate", "x", "--tier", "exact", "--profile", "p", "--budget", "64MB"),
            "--profile, --budget have no effect with --tier exact",
        ),
        (("generate", "x", "--budget", "0", "--profile", "p"), "--budget 0 holds nothing"),
        (("generate", "x", "--budget", "64MB"), "--budget has no effect without --profile"),
        (("generate", "x", "--chunk", 10**20), "less than or equal to 1000000"),
        (("calibrate", "--dry-run", "--resume"), "--resume has no effect with --dry-run"),
        (("profile", "--device", "cpu", "--no-flex"), "--flex has no effect without a CUDA device"),
        (("profile", "--device", "cpu", "--end-to-end", "--resume"), "--end-to-end, --resume have no effect without"),
        (("profile", "--window", 4096, "--context", "2048,8192"), "--window 4,096 must be below the shortest"),
        (("compare", "h2o", "--quick", "--quotable"), "--quick is. Leave one of them out"),
        (("show", "p", "--csv", "-"), "--csv - is no file"),
        (("show", "p", "--svg", "-", "--json", "-"), "--svg - is no file"),
        (("calibrate", "--dry-run", "--data", "file:none.txt"), "none.txt"),
        (("calibrate", "--dry-run", "--data", "hub:"), "--data hub: names no data set"),
        (("calibrate", "--profile-budget", "0MB"), "--profile-budget 0MB is too small: a profile takes 20,000 bytes"),
        (("unpack", "x.sqkv", "-p", "x", "--then", ""), "--then is empty"),
        (("calibrate", "--model", "none.gguf", "--dry-run"), "There is no GGUF file none.gguf"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_an_option_that_would_change_nothing_is_refused(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_hot_codes_are_not_decoded_without_a_budget(small_profile, tmp_path, capsys):
    small_profile.save(tmp_path / "p")
    words = ("generate", "x", "--profile", tmp_path / "p", "--model", "nowhere", "--working-set", "1MB", "--offline")
    assert "--working-set has no effect" in refused(capsys, *words, "--tier", "hot")
    assert "--working-set" not in refused(capsys, *words, "--tier", "cold")
    assert "--working-set" not in refused(capsys, *words, "--tier", "hot", "--budget", "64MB")


def test_a_method_and_budget_that_is_named_twice_is_measured_once():
    groups = _once([parse("turboquant"), parse("turboquant:bits=3"), parse("h2o:keep=0.3"), parse("h2o:keep=0.3")])
    labels = [spec.label for group in groups for spec in group]
    assert len(labels) == len(set(labels)) == len(parse("turboquant")) + 1
