"""Every results file has one command that writes it; running one writes, resumes, and compares within tolerances."""

import contextlib
import functools
import io
import json
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from research.results import cards, side_by_side
from research.results import run as runner
from research.results.commands import command_of
from research.results.compare import differences
from research.results.run import chosen
from research.results.side_by_side import Run
from research.results.stale import RESULTS
from research.results.table import PROFILES, TABLE, entry, tolerance
from spectralquant.errors import InputError
from spectralquant.evaluation.match import parse_match
from spectralquant.evaluation.tasks.run import parse_tasks
from spectralquant.methods.registry import check, parse
from sqcli.commands.study import WITH_PROFILE
from sqcli.refusals.study_options import profile_free


def test_every_stored_file_has_one_command():
    names = [e.name for e in TABLE]
    assert len(names) == len(set(names))
    assert {file.stem for file in RESULTS.glob("*.json")} <= set(names)


@functools.cache
def help_of(module: str, how: str = "-m") -> str:
    """What `python -m MODULE --help` says, asked in this process."""
    assert how == "-m"
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [module, "--help"])
        with warnings.catch_warnings(action="ignore"):  # runpy: the module may be there already
            runpy.run_module(module, run_name="__main__")
    assert not end.value.code
    return said.getvalue()


@pytest.mark.parametrize("name", [e.name for e in TABLE])
def test_commands_have_options_that_exist(name, tmp_path):
    from sqcli.root import command_line

    commands = command_line().commands
    text = tmp_path / "t"
    text.write_text("x")
    each = entry(name)
    assert all("{out}" in command for command in (*each.before, each.command)), "the command names the file it writes"
    parts = {part.command: part.name for part in each.parts}
    for command in (*each.before, *parts, each.command):
        words = command_of(each, command, text, parts.get(command, ""))
        assert not any("{" in word for word in words)
        if words[2] != "sqcli":
            assert all(word in help_of(words[2], words[1]) for word in words if word.startswith("--"))
            continue
        with commands[words[3]].make_context(
            words[3], words[4:]
        ) as context:  # every option and value is read, nothing runs
            given = context.params
        if words[3] == "study":
            read = words[4]
            assert given["profile"] or read not in WITH_PROFILE or profile_free(read, given["part"] or ()), (
                "a command without the profile that its study asks for is refused"
            )
        profile_first = words[3] == "calibrate" and command in each.before
        written = f"{name}-part-{parts[command]}.json" if "{part}" in command else f"{name}.json"
        assert profile_first or str(given["json"]) == written, "the command writes this file"
        if words[3] == "compare":
            lengths = given["context"], given["task_context"]
            assert all(int(n) >= 384 for text in lengths for n in text.split(","))
            assert parse_tasks(given["tasks"]) or not given["tasks"]
            specs = [spec for name in given["methods"] if name != "all" for spec in parse(name)]
            for spec in specs:
                check(spec)
            assert specs or given["methods"] == ["all"]
            assert given["match"] is None or parse_match(given["match"]) == 0.01
    for other in each.after:
        shared = any("{" + p + "}" in entry(other).command and "{" + p + "}" in each.command for p in PROFILES)
        assert shared or f"{other}.json" in each.command


def test_code_that_matters_alone_is_there():
    for each in TABLE:
        assert all((runner.ROOT / path).exists() for path in each.only)


def test_what_cannot_run_is_refused_first(tmp_path):
    with pytest.raises(InputError, match="no such results file"):
        chosen(("cpu",), ["colder"], False, [])
    with pytest.raises(InputError, match="needs gpu: run make results-gpu"):
        chosen(("cpu",), ["tuning-h100"], False, [])
    each = entry("cache-smollm2-cpu")
    with pytest.raises(InputError, match="reads WikiText-2 raw test"):
        command_of(each, each.command, tmp_path / "none")


def test_only_what_is_stale_is_made_unless_all_is_asked_for():
    assert [e.name for e in chosen(("cpu",), [], False, ["gate-simulation", "tuning-h100"])] == ["gate-simulation"]
    both = [e.name for e in chosen(("gpu", "serving-gpu"), [], False, ["serving-h100", "tuning-h100", "durations"])]
    assert both == ["tuning-h100", "serving-h100"]
    assert len(chosen(("cpu",), [], True, [])) == sum(e.needs == "cpu" for e in TABLE)


def test_figures_are_compared_by_their_tolerance():
    stored = {"rows": [{"kl_nats": 0.01, "encode_s": 1.0, "bytes": 1000, "ok": True}], "provenance": {"n": 1}}
    near = {"rows": [{"kl_nats": 0.0105, "encode_s": 1.3, "bytes": 1040, "ok": True}], "provenance": {"n": 2}}
    far = {"rows": [{"kl_nats": 0.02, "encode_s": 3.0, "bytes": 2000, "ok": True}], "provenance": {"n": 1}}
    assert differences(stored, near) == []
    assert [line.partition(":")[0] for line in differences(stored, far)] == [
        f"rows[0].{n}" for n in ("bytes", "encode_s", "kl_nats")
    ]
    assert differences(stored, {"rows": []})[0].endswith("only in the stored file")
    assert differences({"rows": [{"kl_nats_ci95": [0.01, 0.02]}]}, {"rows": [{"kl_nats_ci95": [0.01, 0.5]}]})


@pytest.mark.parametrize(
    "field, relative", [("encode_s", 0.35), ("peak_memory_bytes", 0.15), ("kl_nats", 0.1), ("payload_ratio", 0.05)]
)
def test_times_may_differ_more_than_rates(field, relative):
    assert tolerance(field)[0] == relative


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A build folder and stored results of their own, of a source that is clean."""
    monkeypatch.setattr(runner, "BUILD", tmp_path / "build")
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runner, "LIST", tmp_path / "stale.toml")
    (tmp_path / "results").mkdir()
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=runner.ROOT)
    if head.returncode:
        pytest.skip("this tree is no checkout")
    monkeypatch.setenv("SQ_GIT_COMMIT", head.stdout.strip())
    monkeypatch.setenv("SQ_GIT_DIRTY", "0")
    return tmp_path


@pytest.mark.slow  # a command in a process of its own
def test_a_file_is_made_resumed_and_checked(place, monkeypatch, capfd):
    """The simulation of the gate, as the table has it, but of few runs."""

    def shorter(*arguments, **options):
        python, how, module, *words = command_of(*arguments, **options)
        assert (how, module) == ("-m", "sqcli")
        return [python, str(Path(__file__).with_name("simulation_for_tests.py")), *words]

    monkeypatch.setattr(side_by_side, "command_of", shorter)
    short = entry("gate-simulation")
    assert runner.main(["--only", short.name]) == 0
    stored = place / "results" / "gate-simulation.json"
    facts = json.loads(stored.read_text())["provenance"]
    assert facts["quotable"] and facts["command"] == shlex.join(
        ["sq", "study", "gate", "--out", "gate-simulation.json", "--quotable"]
    )
    capfd.readouterr()
    monkeypatch.setattr(Run, "_work", None)  # the second time nothing runs
    assert runner.main(["--only", short.name, "--check"]) == 0
    said = capfd.readouterr().out
    assert "gate-simulation: made by an earlier run" in said and "gate-simulation: within tolerances" in said
    changed = json.loads(stored.read_text())
    changed["runs"] *= 2
    stored.write_text(json.dumps(changed))
    assert runner.main(["--only", short.name, "--check"]) == 1
    assert "runs: 100 stored, 50 now" in capfd.readouterr().out
    monkeypatch.setattr(Run, "run", lambda self: {job.name: "anew" for job in self.jobs})
    assert runner.main(["--only", short.name]) == 0, "kept"
    assert runner.main(["--only", short.name, "--again"]) == 1, "what was kept is forgotten"


def test_a_stored_file_borrows_from_its_newer_sources(place, monkeypatch):
    monkeypatch.setattr(Run, "run", lambda self: {})
    for name in ("serving-cpu", "serving-hot-cpu"):
        result = json.loads((RESULTS / f"{name}.json").read_text())
        result["summary"]["hot_capacity_over_bf16"] = 9.0 if "hot" in name else None
        (place / "results" / f"{name}.json").write_text(json.dumps(result))
    assert runner.main(["--only", "gate-simulation"]) == 0
    done = json.loads((place / "results" / "serving-cpu.json").read_text())
    assert done["summary"]["hot_capacity_over_bf16"] == 9.0
    assert done["settings"]["other_files"].keys() == {"serving-hot-cpu.json"}


@pytest.mark.parametrize(
    "words, said",
    [
        ("--list --check", "--check does nothing with --list"),
        ("--list --only quality", "--only does nothing with --list"),
        ("--gpus 2", "--gpus does nothing without --needs gpu"),
        ("--only gate-simulation --text none", "--text 'none' is not there"),
        ("--only gate-simulation --text .", "--text '.' is a folder"),
        ("--only gate-simulation --text short", "--text short has 1 characters"),
        ("--needs gpu", "shows none"),
        ("--needs serving --only serving-cpu", "vLLM, which is not installed here"),
    ],
)
def test_what_would_do_nothing_or_cannot_run_here_is_refused(place, monkeypatch, capsys, words, said):
    monkeypatch.chdir(place)
    (place / "short").write_text("x")
    monkeypatch.setattr(cards, "visible_cards", lambda needs: [""])
    monkeypatch.setattr(cards, "find_spec", lambda name: None)
    assert runner.main(words.split()) == 2
    assert said in capsys.readouterr().err


def test_the_list_is_of_what_is_asked_for(capsys):
    """`make results MORE=--list` is of a processor's files: the target says what it needs."""
    shown = {}
    for needs in ((), ("cpu",), ("serving-gpu",)):
        assert runner.main(["--list", *(word for need in needs for word in ("--needs", need))]) == 0
        lines = capsys.readouterr().out.splitlines()
        shown[needs] = {line.split()[0] for line in lines if not line.startswith(" ")}
    assert shown[()] == {e.name for e in TABLE}
    assert shown["cpu",] == {e.name for e in TABLE if e.needs == "cpu"}
    assert shown["serving-gpu",] == {"serving-h100", "serving-decode-h100", "serving-hot-h100", "serving-hot-8b-h100"}


@pytest.mark.parametrize("given", [[], ["WIKI=a text"]])
def test_make_names_a_text_where_one_is_given(given):
    """Files that read none are made without it."""
    make = ["make", "-n", "results", *given]
    done = subprocess.run(make, capture_output=True, text=True, check=True, cwd=runner.ROOT)
    assert "research.results.run --needs cpu" in done.stdout
    assert ("--text" in done.stdout) is bool(given) and ("--text 'a text'" in done.stdout) is bool(given)


def test_only_commands_that_can_go_on_are_told_to(tmp_path):
    text = tmp_path / "t"
    text.write_text("x")
    for name, can in [("cold-smollm2-wikitext2", True), ("durations", False)]:
        each = entry(name)
        assert ("--resume" in command_of(each, each.command, text, resume=True)) is can
        assert "--resume" not in command_of(each, each.command, text)


def test_a_changed_tree_is_refused(place, monkeypatch, capsys):
    monkeypatch.setenv("SQ_GIT_DIRTY", "1")
    assert runner.main(["--only", "gate-simulation"]) == 2
    assert "Commit your changes" in capsys.readouterr().err
