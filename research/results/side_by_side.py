"""Jobs side by side on the cards there are, each as soon as those it waits for have ended and its cards are free."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from pathlib import Path

from research.results.cards import SHARING, Cards
from research.results.commands import command_of, shown, surroundings
from research.results.jobs import BEGUN, MARK, Job
from research.results.stale import ROOT
from spectralquant.errors import SpectralQuantError
from spectralquant.files import write_text
from spectralquant.origin.checkout import source_commit

LAST = 6
PATIENCE_S = 30.0


class Run:
    """build: where commands run; their output goes into a folder there where there are several cards. A job that takes more cards than
    there are is left out. minutes: none begins that would take longer than is left, and what still works then is ended; what
    it has kept is gone on with in the next run.
    """

    def __init__(
        self, jobs: Sequence[Job], cards: Cards, build: Path, text: Path, minutes: float | None = None
    ) -> None:
        self.jobs, self.cards, self.build, self.text = [job for job in jobs if cards.fits(job)], cards, build, text
        for job in jobs:
            if not cards.fits(job):
                print(
                    f"{job.name}: left out, since it takes {job.gpus} GPUs and there is {len(cards.names)}", flush=True
                )
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.logs = build / "logs" if len(cards.names) > 1 else None
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ended = False

    def run(self) -> dict[str, str]:
        """Why jobs have no result, by name; nothing where all have."""
        failed: dict[str, str] = {}
        done: set[str] = set()
        waiting = sorted(self.jobs, key=lambda job: (job.gpus == 1, -self._path(job)))
        running: dict[Future[float], Job] = {}
        with ThreadPoolExecutor(SHARING * len(self.cards.names)) as pool:
            while waiting or running:
                for job in list(waiting):
                    why = self._never(job, failed)
                    if why:
                        failed[job.name] = why
                        waiting.remove(job)
                    elif self._ready(job, done) and (taken := self.cards.take(job)) is not None:
                        waiting.remove(job)
                        running[pool.submit(self._work, job, taken)] = job
                try:
                    for future in self._next(running):
                        job = running.pop(future)
                        self.cards.give(job)
                        try:
                            print(f"{job.name}: {future.result():.0f} s", flush=True)
                            done.add(job.name)
                        except SpectralQuantError as error:
                            failed[job.name] = str(error)
                except BaseException:  # Ctrl-C among them
                    self._end()
                    raise
        return failed

    def _path(self, job: Job) -> int:
        """Minutes of a job and of the longest row of jobs that wait for it."""
        later = [self._path(other) for other in self.jobs if job.name in other.after]
        return job.minutes + max(later, default=0)

    def _ready(self, job: Job, done: set[str]) -> bool:
        names = {other.name for other in self.jobs}
        return all(name in done for name in job.after if name in names)

    def _never(self, job: Job, failed: Mapping[str, str]) -> str | None:
        """Why a job that waits will not run."""
        if lost := [name for name in job.after if name in failed]:
            return f"not run: it waits for {lost[0]}"
        if self.end is not None and time.monotonic() + 60 * job.minutes > self.end:
            return f"not run: it takes about {job.minutes} min, and less is left"
        return None

    def _next(self, running: Mapping[Future[float], Job]) -> set[Future[float]]:
        left = None if self.end is None else max(0.0, self.end - time.monotonic())
        ended = wait(running, left, FIRST_COMPLETED).done if running else set()
        if running and not ended:
            self._end()
            return wait(running).done
        return ended

    def _work(self, job: Job, taken: Sequence[str]) -> float:
        """Seconds. Raises SpectralQuantError: a command failed, or was ended."""
        begin = time.monotonic()
        begun, commit = self.build / f"{job.file}{BEGUN}", source_commit(ROOT).commit or ""
        resume = begun.is_file() and begun.read_text(encoding="utf-8") == commit
        write_text(begun, commit)
        environment = surroundings() | self.cards.environment(taken)
        for command in job.commands:
            if self.ended:
                raise SpectralQuantError(f"{job.name}: not run: the time is over")
            words = command_of(job.entry, command, self.text, job.part, resume)
            print(f"{job.name}: {shown(words)}", flush=True)
            log = self._log(job)
            with open(log, "ab") if log else nullcontext() as said:
                process = subprocess.Popen(words, cwd=self.build, env=environment, stdout=said, stderr=said)
                self.processes.append(process)
                if log:
                    with suppress(ProcessLookupError):  # it has ended already
                        os.sched_setaffinity(process.pid, self.cards.cores(taken))
                code = process.wait()
            if code not in (0, 1):
                why = "was ended, as the time is over" if self.ended else f"ended with exit code {code}"
                raise SpectralQuantError(f"{job.name}: the command {why}; {_last(log)}")
        if job.file.endswith(MARK):
            write_text(self.build / job.file, commit)
        begun.unlink(missing_ok=True)
        return time.monotonic() - begin

    def _log(self, job: Job) -> Path | None:
        if self.logs is None:
            return None
        self.logs.mkdir(exist_ok=True)
        return self.logs / f"{job.name.replace(': ', '-')}.log"

    def _end(self) -> None:
        """End what still works, first as Ctrl-C would."""
        self.ended = True
        for process in self.processes:
            process.send_signal(signal.SIGINT)
        last = time.monotonic() + PATIENCE_S
        for process in self.processes:
            try:
                process.wait(max(0.0, last - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _last(log: Path | None) -> str:
    if log is None:
        return "see above."
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST:]
    return "\n  ".join([f"the last lines of {log}:", *lines])
