"""Results files on several GPUs: who gets which card when, what waits for what, and where it ends."""

from __future__ import annotations

import json
import shlex
import sys
import time
from itertools import combinations

import pytest

from research.results import jobs as job_list
from research.results import side_by_side
from research.results.cards import Cards, visible_cards
from research.results.jobs import Job, job_done, jobs_of, with_sources
from research.results.side_by_side import Run
from research.results.stale import History
from research.results.table import EVERY, TABLE, Entry, Part, entry
from spectralquant.origin.checkout import SourceCommit

NOTE = """import json, os, sys, time
name, seconds, code = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
begin = time.time()
time.sleep(seconds)
cards = os.environ.get("CUDA_VISIBLE_DEVICES", "")
cores = sorted(os.sched_getaffinity(0))
json.dump({"cards": cards, "begin": begin, "end": time.time(), "cores": cores}, open(f"{name}.json", "w"))
print("said", name)
sys.exit(code)
"""


@pytest.fixture
def build(tmp_path):
    (tmp_path / "note.py").write_text(NOTE)
    return tmp_path


def job(name, seconds=0.3, code=0, minutes=1, **more):
    command = f"python note.py {name} {seconds} {code}"
    return Job(name, Entry(name, command, "gpu", minutes), (command,), f"{name}.json", minutes, **more)


def run(build, jobs, cards=("0", "1"), minutes=None):
    failed = Run(jobs, Cards(list(cards)), build, build / "none", minutes).run()
    return failed, {j.name: json.loads((build / j.file).read_text()) for j in jobs if (build / j.file).is_file()}


def overlap(one, other):
    return one["begin"] < other["end"] and other["begin"] < one["end"]


def test_what_is_timed_has_its_card_alone(build):
    failed, notes = run(build, [job(f"timed{i}") for i in range(4)])
    assert not failed and {note["cards"] for note in notes.values()} == {"0", "1"}
    for one, other in combinations(notes.values(), 2):
        assert one["cards"] != other["cards"] or not overlap(one, other)


def test_figures_of_quality_share_a_card_and_leave_the_other_to_timings(build):
    jobs = [job(f"quality{i}", 2.5, shares=True) for i in range(3)] + [job("timed", 2.5)]
    failed, notes = run(build, jobs)
    shared = {notes[f"quality{i}"]["cards"] for i in range(3)}
    assert not failed and len(shared) == 1 and notes["timed"]["cards"] not in shared
    assert all(overlap(notes[a], notes[b]) for a, b in combinations(notes, 2))


def test_a_job_of_every_card_runs_alone(build):
    failed, notes = run(build, [job("one"), job("all", gpus=EVERY), job("two", gpus=2), job("other", shares=True)])
    assert not failed and notes["all"]["cards"] == notes["two"]["cards"] == "0,1"
    for name in ("all", "two"):
        assert not any(overlap(notes[name], note) for other, note in notes.items() if other != name)


def test_what_a_job_waits_for_comes_first_and_its_failure_ends_it(build):
    jobs = [job("last", after=("middle",)), job("middle", after=("first",)), job("first"), job("free")]
    failed, notes = run(build, jobs)
    assert (
        not failed
        and notes["first"]["end"] <= notes["middle"]["begin"] < notes["middle"]["end"] <= notes["last"]["begin"]
    )
    for note in build.glob("*.json"):
        note.unlink()
    failed, notes = run(build, [*jobs[:2], job("first", code=3), jobs[3]])
    assert failed.keys() == {"first", "middle", "last"} and "free" in notes and "middle" not in notes
    assert (
        "exit code 3" in failed["first"] and "said first" in failed["first"] and "waits for first" in failed["middle"]
    )


def test_exit_code_1_is_a_result(build):
    assert run(build, [job("found", code=1)])[0] == {}


def test_a_machine_with_too_few_cards_leaves_parts_out(build, capfd):
    failed, notes = run(build, [job("two", gpus=2), job("whole", after=("two",))], cards=("0",))
    assert not failed and notes.keys() == {"whole"}
    assert "two: left out, since it takes 2 GPUs and there is 1" in capfd.readouterr().out


def test_a_run_ends_in_time(build):
    """What cannot end is not begun; what takes longer than it said is ended."""
    begin = time.monotonic()
    jobs = [job("short", 0.1, minutes=0), job("long", 0.1, minutes=5), job("slow", 60, minutes=0)]
    failed, notes = run(build, jobs, minutes=0.2)
    assert time.monotonic() - begin < 50 and notes.keys() == {"short"}
    assert "less is left" in failed["long"] and "time is over" in failed["slow"]


def test_ctrl_c_ends_what_works(build, monkeypatch):
    """Nothing is left running, and nothing more begins."""
    jobs = [job("slow", 60), job("next", after=("slow",))]
    started = Run(jobs, Cards(["0", "1"]), build, build / "none")

    def interrupted(running):
        time.sleep(0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(started, "_next", interrupted)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        started.run()
    assert time.monotonic() - begin < 30 and not list(build.glob("*.json"))
    assert [process.poll() is None for process in started.processes] == [False]


def test_a_command_that_was_cut_off_is_told_to_go_on(build, monkeypatch):
    """In the next run of the same commit, and in no other."""
    given = []

    def command_of(entry, command, text, part, resume):
        given.append(resume)
        return shlex.split(command.replace("python", sys.executable))

    monkeypatch.setattr(side_by_side, "command_of", command_of)
    cut, whole = job("one", code=130), job("one")
    for each in (cut, cut, whole, whole):
        run(build, [each])
    assert given == [False, True, True, False]
    run(build, [cut])
    monkeypatch.setattr(side_by_side, "source_commit", lambda root: SourceCommit("0" * 40, False))
    run(build, [whole])
    assert given[4:] == [False, False] and not list(build.glob("*.begun"))


def test_each_card_has_its_share_of_the_cores(build, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    cards = Cards(["0", "1", "2", "3"])
    assert cards.cores(["1"]) == {2, 3} and cards.cores(["0", "1", "2", "3"]) == set(range(8))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {5})
    assert Cards(["0", "1"]).cores(["1"]) == {5}


def test_cards_are_those_that_may_be_seen(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_cards(["gpu"]) == visible_cards(["cpu", "serving-gpu"]) == ["3", "5"] and visible_cards(["cpu"]) == [
        ""
    ]
    assert Cards([""]).environment([""]) == {} and Cards(["3"]).environment(["3"]) == {"CUDA_VISIBLE_DEVICES": "3"}


def test_parts_come_after_the_profile_and_before_the_whole():
    made = {j.name: j for j in jobs_of([entry("serving-h100")])}
    assert next(iter(made)) == "serving-h100: before" and list(made)[-1] == "serving-h100"
    assert made["serving-h100: tp"].gpus == 2 and made["serving-h100: tp"].after == ("serving-h100: before",)
    assert set(made["serving-h100"].after) == {name for name in made if made[name].part}
    (plain,) = jobs_of([entry("hot-smollm2-free-4")])
    assert len(plain.commands) == 2 and not plain.after


def test_profiles_of_other_entries_are_made_first_where_they_are_not_there(tmp_path):
    entries = with_sources([entry("tasks-gemma3-8192")], tmp_path, History())
    assert [e.name for e in entries] == ["calibrate-gemma3-h100", "tasks-gemma3-8192"]
    jobs = jobs_of(entries)
    assert jobs[1].after == ("calibrate-gemma3-h100",)


def test_every_name_that_a_job_waits_for_is_an_entry():
    assert {name for e in TABLE for name in e.after} <= {e.name for e in TABLE}


def test_a_part_is_done_where_its_file_is_of_this_commit_and_whole(tmp_path, monkeypatch):
    commit = "0" * 40
    monkeypatch.setattr(job_list, "source_commit", lambda root: type("Source", (), {"commit": commit}))
    monkeypatch.setattr(job_list, "why_stale", lambda result, history, only: [])
    whole = Entry("whole", "sq x {out}", "gpu", 1, before=("sq y",), parts=(Part("a", "sq x {part}", 1),))
    before, part, last = jobs_of([whole])
    assert not any(job_done(j, tmp_path, History()) for j in (before, part, last))
    (tmp_path / before.file).write_text(commit)
    (tmp_path / part.file).write_text(json.dumps({"provenance": {"git_commit": commit}, "settings": {}}))
    assert job_done(before, tmp_path, History()) and job_done(part, tmp_path, History())
    (tmp_path / part.file).write_text(
        json.dumps({"provenance": {"git_commit": commit}, "settings": {"unfinished": ["b"]}})
    )
    assert not job_done(part, tmp_path, History())
    (tmp_path / part.file).write_text(json.dumps({"provenance": {"git_commit": "1" * 40}}))
    (tmp_path / before.file).write_text("1" * 40)
    assert not job_done(part, tmp_path, History()) and not job_done(before, tmp_path, History())
