"""What is shown while a command works: a bar a stage, an estimate over all stages, and plans that name real stages."""

from __future__ import annotations

import io

import pytest
from commands_for_tests import SENTENCE, Place, line, sq
from rich.console import Console

from sqcli.output import Output
from sqcli.progress.bar import Plan, StageProgress, time_text


class Recording:
    """A progress bar that keeps what it was planned for and told."""

    def __init__(self) -> None:
        self.plan: list[tuple[str, float]] = []
        self.calls: list[tuple[str, int, int]] = []

    def planned(self, plan: Plan) -> Recording:
        self.plan = list(plan)
        return self

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.calls.append((stage, done, total))


@pytest.fixture
def place(small_profile, small_folder, tmp_path, monkeypatch) -> Place:
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path / "cache"))
    small_profile.save(tmp_path / "profile")
    (tmp_path / "long.txt").write_text(SENTENCE * 160)
    return Place(tmp_path / "profile", small_folder, tmp_path)


@pytest.fixture
def recorded(monkeypatch) -> Recording:
    recording = Recording()
    monkeypatch.setattr(Output, "progress", lambda _, plan=(): recording.planned(plan))
    return recording


@pytest.mark.parametrize("name", ["calibrate", "compare", "gate"])
def test_a_plan_names_the_stages_that_come_in_their_order(name, place, recorded):
    assert sq(*line(name, place)) == 0
    stages = list(dict.fromkeys(stage for stage, _, _ in recorded.calls))
    assert recorded.plan
    at = 0
    for prefix, share in recorded.plan:
        place_of = next((i for i in range(at, len(stages)) if stages[i].startswith(prefix)), None)
        assert place_of is not None, f"planned {prefix!r} does not come among {stages[at:]}"
        assert share > 0
        at = place_of


def test_packing_counts_the_prompt_and_the_coded_blocks(place, recorded):
    assert sq(*line("pack", place)) == 0
    stages = dict.fromkeys(stage for stage, _, _ in recorded.calls)
    assert any(stage.startswith("encoding") for stage in stages) and len(stages) > 1
    for stage in stages:
        counts = [(done, total) for name, done, total in recorded.calls if name == stage]
        assert counts == sorted(counts) and len({total for _, total in counts}) == 1
    assert max(total for stage, _, total in recorded.calls if stage.startswith("encoding")) > 1


def drawn(bar_calls, plan=(), clock=None, monkeypatch=None) -> str:
    """The last lines that a terminal of 100 columns shows."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with StageProgress(console, visible=True, plan=plan) as bar:
        for seconds, call in bar_calls:
            monkeypatch.setattr("sqcli.progress.bar.time.monotonic", lambda at=clock + seconds: at)
            bar(*call)
        bar._bar.refresh()
        return screen.getvalue()


@pytest.fixture
def clock() -> float:
    import time

    return time.monotonic()


def test_a_counted_stage_shows_its_rate_and_time_left(clock, monkeypatch):
    said = drawn([(0, ("calibrate", 0, 100)), (30, ("calibrate", 20, 100))], clock=clock, monkeypatch=monkeypatch)
    assert "20/100, 1.5 s each, 2 min left" in said and "-:--:--" not in said


def test_a_single_step_shows_the_time_so_far(clock, monkeypatch):
    said = drawn([(0, ("basis of keys", 0, 1))], clock=clock, monkeypatch=monkeypatch)
    assert "so far" in said and "0/1" not in said


def test_all_stages_have_one_estimate_that_never_goes_back(clock, monkeypatch):
    plan = [("read", 30.0), ("solve", 60.0), ("write", 10.0)]
    half = [(0, ("read", 0, 10)), (30, ("read", 10, 10)), (60, ("solve", 1, 3))]
    assert "50 %, about 60 s left" in drawn(half, plan, clock, monkeypatch)
    again = [*half, (61, ("read", 1, 10)), (62, ("a stage without a plan", 1, 2))]
    assert "50 %" in drawn(again, plan, clock, monkeypatch).splitlines()[-2]


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (5400, "1 h 30 min")])
def test_times_are_read_at_a_glance(seconds, text):
    assert time_text(seconds) == text
