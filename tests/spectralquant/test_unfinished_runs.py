"""Finished parts of runs: kept, reused, never another run's, gone at the end."""

from __future__ import annotations

import os
import time

import pytest

from spectralquant.errors import BusyError, InputError
from spectralquant.results.unfinished import NOTHING_KEPT, UnfinishedRun, advice


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path))


def interrupted(inputs, parts: int) -> UnfinishedRun:
    with pytest.raises(KeyboardInterrupt), UnfinishedRun("test", inputs) as run:
        for i in range(parts):
            run.value(f"part {i}", lambda i=i: {"n": i, "x": 0.1 + i})
        raise KeyboardInterrupt
    return run


def never():
    raise AssertionError("this part was finished already")


def test_parts_of_an_interrupted_run_are_taken_and_the_folder_goes_at_the_end():
    first = interrupted({"a": 1}, 2)
    assert "2 finished parts are kept" in advice() and str(first.folder) in advice()
    said = []
    with UnfinishedRun("test", {"a": 1}, resume=True, report=said.append) as run:
        assert run.value("part 1", never) == {"n": 1, "x": 1.1}
        assert run.value("part 2", lambda: [3]) == [3]
        assert run.facts() == {"resumed_parts": 1}
    assert said == ["Going on with 2 finished parts."]
    assert not first.folder.exists() and not list(first.folder.parent.iterdir())


@pytest.mark.parametrize("inputs,resume", [({"a": 2}, True), ({"a": 1}, False)])
def test_parts_of_another_run_or_without_resume_are_not_taken(inputs, resume):
    interrupted({"a": 1}, 1)
    with UnfinishedRun("test", inputs, resume=resume) as run:
        assert run.value("part 0", lambda: "new") == "new"


def test_resuming_nothing_begins_anew_and_says_so():
    said = []
    with UnfinishedRun("test", {}, resume=True, report=said.append) as run:
        assert run.value("x", lambda: 1) == 1
    assert "no interrupted run" in said[0]


def test_an_interruption_before_the_first_part_says_that_nothing_is_left():
    run = interrupted({}, 0)
    assert advice().startswith("Nothing was finished") and not run.folder.exists()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:]])
def test_a_damaged_part_is_made_again(damage):
    first = interrupted({}, 1)
    part = next(first.folder.glob("*.part"))
    part.write_bytes(damage(part.read_bytes()))
    with UnfinishedRun("test", {}, resume=True) as run:
        assert run.value("part 0", lambda: "again") == "again"


def test_two_runs_of_the_same_inputs_do_not_mix():
    said = []
    with UnfinishedRun("test", {}) as first:
        first.value("x", lambda: 1)
        with UnfinishedRun("test", {}, report=said.append) as second:
            assert second.value("x", lambda: 2) == 2 and second.path("y") is None
        assert "another process works on the same run" in said[0]
        with pytest.raises(BusyError, match="Wait until it has ended"), UnfinishedRun("test", {}, resume=True):
            pass
        assert first.value("x", never) == 1, "the others took and deleted nothing"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    tmp_path.chmod(0o500)
    said = []
    try:
        with UnfinishedRun("test", {}, report=said.append) as run:
            assert run.value("x", lambda: 1) == 1
    finally:
        tmp_path.chmod(0o700)
    assert "cannot be kept" in said[0]


def test_a_cache_that_is_a_file_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path / "file"))
    said = []
    with UnfinishedRun("test", {}, report=said.append) as run:
        assert run.value("x", lambda: 1) == 1
    assert "cannot be kept" in said[0]


def test_runs_that_nobody_went_on_with_are_forgotten():
    old = interrupted({"a": 1}, 1).folder
    os.utime(old, (time.time() - 100 * 24 * 3600,) * 2)
    with UnfinishedRun("test", {"a": 2}):
        assert not old.exists()


def test_nothing_kept_makes_everything():
    assert NOTHING_KEPT.value("x", lambda: (1,)) == (1,) and NOTHING_KEPT.facts() == {}


def test_parts_of_another_commit_are_refused_with_a_way_out(monkeypatch):
    """One results file never mixes two versions of the code."""
    from spectralquant.origin.checkout import SourceCommit

    first = interrupted({"a": 1}, 1)
    monkeypatch.setattr("spectralquant.results.unfinished.source_commit", lambda: SourceCommit("f" * 40, False))
    with pytest.raises(InputError, match=r"commit f{40}.*Run that commit with --resume, or this one without"):
        UnfinishedRun("test", {"a": 1}, resume=True).__enter__()
    with UnfinishedRun("test", {"a": 1}) as anew:
        assert anew.value("part 0", lambda: "new") == "new"
    with UnfinishedRun("test", {"a": 2}, resume=True) as other:
        assert other.value("part 0", lambda: "new") == "new"
    assert first.folder.exists(), "the other commit's parts stay until that commit goes on or gives them up"
