"""Progress on stderr: a bar for the stage that runs, and one with an estimate for all stages where their shares are known."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

ENOUGH = 0.02  # of the work, before time left is guessed from it
Plan = Sequence[tuple[str, float]]


def time_text(seconds: float) -> str:
    """`45 s`, `3 min`, `1 h 10 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


class _Left(ProgressColumn):
    """Steps, rate and time left of a counted stage; time so far of one that is a single step."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        return Text(task.fields["said"] or f"{time_text(task.elapsed or 0)} so far", style="progress.remaining")


class StageProgress:
    """A progress bar that follows named stages: `bar(stage, done, total)`.

    plan: (beginning of a stage's name, share of the work) in order; with it a second bar estimates the time of all stages.
    """

    def __init__(self, console: Console, *, visible: bool, plan: Plan = ()) -> None:
        self._bar = Progress(
            TextColumn("{task.description:<26.26}"),
            BarColumn(bar_width=20),
            _Left(),
            console=console,
            disable=not visible,
            transient=True,
        )
        self._plan, self._at = plan, -1
        self._all: TaskID | None = self._bar.add_task("all stages", total=1.0, said="") if plan else None
        self._stage: str | None = None
        self._task: TaskID | None = None
        self._begin = self._stage_begin = time.monotonic()

    def __enter__(self) -> StageProgress:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._stage, self._stage_begin, self._first = stage, now, done
            self._task = self._bar.add_task(stage, total=total if total > 1 else None, said="")
        if total > 1:
            self._bar.update(self._task, completed=done, total=total, said=self._counted(now, done, total))
        self._overall(now, stage, done / max(total, 1))

    def _counted(self, now: float, done: int, total: int) -> str:
        """`12/100, 1.5 s each, 2 min left`."""
        said, fresh = f"{done:,}/{total:,}", done - self._first
        if fresh < 1:
            return said
        each = (now - self._stage_begin) / fresh
        rate = f"{1 / each:.1f}/s" if each < 1 else f"{each:.1f} s each"
        return f"{said}, {rate}, {time_text(each * (total - done))} left"

    def _overall(self, now: float, stage: str, share: float) -> None:
        if self._all is None:
            return
        later = (i for i in range(max(self._at, 0), len(self._plan)) if stage.startswith(self._plan[i][0]))
        at = next(later, None)
        if at is None:
            return
        self._at = at
        done = sum(weight for _, weight in self._plan[:at]) + share * self._plan[at][1]
        part = done / sum(weight for _, weight in self._plan)
        left = (now - self._begin) * (1 - part) / part if part >= ENOUGH else None
        said = f"{100 * part:.0f} %" + ("" if left is None else f", about {time_text(left)} left")
        self._bar.update(self._all, completed=part, said=said)
