"""Ctrl-C in every long command: what is said is true, and --resume ends with the result of a run in one go."""

from __future__ import annotations

import json

import pytest
from commands_for_tests import SENTENCE, Place, line, sq

from spectralquant.errors import InputError
from sqcli.output import Output

DIFFER = ("_s", "_ms", "seconds", "seconds_first", "time", "spent", "peak_memory_bytes")
# Command: the stage at which it is interrupted, how many calls of the bar later, and the results file it writes by itself.
LONG = {
    "calibrate": ("calibrate", 27, None),
    "compare": ("h2o, 640", 1, None),
    "gate": ("harness and cache", 1, "suite.json"),
    "pack": ("encoding", 1, None),
    "generate": ("generating", 4, None),
    "profile --generate": ("hot_select", 1, None),
    "study": ("window 2", 0, "study.json"),
}


class Interrupting:
    """A progress bar during which Ctrl-C is pressed."""

    def __init__(self, stage: str, calls: int) -> None:
        self.stage, self.left = stage, calls

    def __enter__(self) -> Interrupting:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage.startswith(self.stage):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def saved_profile(small_profile, tmp_path_factory):
    path = tmp_path_factory.mktemp("interrupts") / "profile"
    small_profile.save(path)
    return path


@pytest.fixture
def place(saved_profile, small_folder, tmp_path, monkeypatch) -> Place:
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("spectralquant.cache.unfinished_text.FIRST_AFTER_S", 0.0)
    monkeypatch.setattr("spectralquant.cache.unfinished_text.COST_SHARE", 1.0)
    (tmp_path / "long.txt").write_text(SENTENCE * 160)
    return Place(saved_profile, small_folder, tmp_path)


def stable(value):
    """A results file without what two equal runs differ in."""
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if not k.endswith(DIFFER) and k not in ("file", "provenance")}
    return [stable(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", LONG)
def test_a_command_goes_on_where_it_was_interrupted(name, place, monkeypatch, capsys):
    stage, calls, own = LONG[name]
    command = line(name, place)
    complete = command if own else [*command, "--json", place.folder / "result.json"]
    outputs = [place.folder / (own or "result.json"), place.folder / "made.sqkv", place.folder / "made.safetensors"]

    def results():
        files = [path for path in outputs[1:] if path.exists()]
        return stable(json.loads(outputs[0].read_text())), [path.read_bytes() for path in files]

    assert sq(*complete) == 0, capsys.readouterr().err
    expected = results()
    for path in outputs:
        path.unlink(missing_ok=True)
    kept = lambda: [*place.folder.rglob("*.part"), *place.folder.rglob("cache-*"), *place.folder.rglob("sums-*")]  # noqa: E731
    assert not kept(), "a finished run leaves nothing"

    with monkeypatch.context() as patch:
        patch.setattr(Output, "progress", lambda self, *plan: Interrupting(stage, calls))
        assert sq(*command) == 130
    said = capsys.readouterr().err
    assert "kept in" in said and "the same command with --resume goes on from there" in said
    assert kept()

    assert sq(*complete, "--resume") == 0
    assert name == "calibrate" or "Going on with" in capsys.readouterr().err
    assert results() == expected
    assert not kept()


@pytest.mark.parametrize("name", LONG)
def test_nothing_is_promised_before_anything_is_finished(name, place, monkeypatch, capsys):
    monkeypatch.setattr(Output, "progress", lambda self, *plan: Interrupting("", 0))
    assert sq(*line(name, place), "--resume") == 130
    said = capsys.readouterr().err
    assert "kept in" not in said and "begins anew" in said


@pytest.mark.parametrize(
    "command",
    [["show", "x"], ["inspect", "x"], ["report", "x"], ["doctor"], ["unpack", "x", "-p", "y"]],
    ids=lambda c: c[0],
)
def test_short_commands_promise_nothing(command, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Output, "__init__", interrupt)
    assert sq(*command) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "sq: Interrupted."


def test_what_cannot_be_resumed_is_refused(capsys):
    assert sq("gate", "--against", ".", "--resume") == 2
    assert "--resume is for --run" in capsys.readouterr().err


def test_a_signal_while_a_command_ends_in_an_error_does_not_hide_it(monkeypatch, capsys):
    """torchrun ends a process that has just lost another one."""

    def lost(*_, **__):
        try:
            raise InputError("Process 0 lost another one; go on with --resume.")
        finally:
            raise KeyboardInterrupt

    monkeypatch.setattr(Output, "__init__", lost)
    assert sq("doctor") == 130
    said = capsys.readouterr().err
    assert "lost another one; go on with --resume." in said and "Interrupted." in said
