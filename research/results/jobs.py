"""What there is to do for some results files: jobs, the jobs they wait for, and which are done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from research.results.commands import part_file
from research.results.stale import History, why_stale
from research.results.table import PROFILES, TABLE, Entry
from spectralquant.origin.checkout import source_commit

UNFINISHED = "unfinished"
MARK, BEGUN = ".before", ".begun"


@dataclass(frozen=True)
class Job:
    """Commands, one after the other, of an entry or of one of its parts. file: the results they leave behind, or, of a job that makes
    a profile, the mark that it has ended. after: names of jobs. gpus, minutes and shares: as of a part.
    """

    name: str
    entry: Entry
    commands: tuple[str, ...]
    file: str
    minutes: int
    part: str = ""
    gpus: int = 1
    shares: bool = False
    after: tuple[str, ...] = ()


def jobs_of(entries: Sequence[Entry]) -> list[Job]:
    """The jobs of some entries, each after those it waits for."""
    return [job for entry in entries for job in _of_entry(entry, [other.name for other in entries])]


def _of_entry(entry: Entry, others: Sequence[str]) -> list[Job]:
    wait = tuple(name for name in entry.after if name in others)
    file = f"{entry.name}.json"
    if not entry.parts:
        return [
            Job(
                entry.name,
                entry,
                (*entry.before, entry.command),
                file,
                entry.minutes,
                shares=entry.shares,
                after=wait,
            )
        ]
    out = []
    if entry.before:
        out.append(Job(f"{entry.name}: before", entry, entry.before, f"{entry.name}{MARK}", 2, after=wait))
        wait = (out[0].name,)
    parts = [
        Job(
            f"{entry.name}: {part.name}",
            entry,
            (part.command,),
            part_file(entry, part.name),
            part.minutes,
            part.name,
            part.gpus,
            part.shares,
            wait,
        )
        for part in entry.parts
    ]
    return [*out, *parts, Job(entry.name, entry, (entry.command,), file, 1, after=tuple(job.name for job in parts))]


def with_sources(entries: Sequence[Entry], build: Path, history: History) -> list[Entry]:
    """Entries in the table's order, with those whose files or profiles they read and that `build` lacks."""
    names: set[str] = set()
    wanted = list(entries)
    while wanted:
        entry = wanted.pop()
        names.add(entry.name)
        wanted += [other for other in map(_entry, entry.after) if not entry_done(other, build, history)]
    return [entry for entry in TABLE if entry.name in names]


def entry_done(entry: Entry, build: Path, history: History) -> bool:
    """Whether `build` holds this commit's file already, and the profile that the command makes beside it."""
    made = [name for name in PROFILES if "{" + name + "}" in entry.command and not entry.after]
    there = all((build / f"{name}.json").is_file() for name in made)
    return there and _fresh(build / f"{entry.name}.json", entry, history)


def job_done(job: Job, build: Path, history: History) -> bool:
    """Whether a job has left its file of this commit."""
    if job.file.endswith(MARK):
        mark = build / job.file
        return mark.is_file() and mark.read_text() == source_commit(history.root).commit
    return _fresh(build / job.file, job.entry, history) if job.part else entry_done(job.entry, build, history)


def forget(entries: Sequence[Entry], build: Path) -> None:
    """Delete what earlier runs have kept of some entries: their files, parts and marks."""
    for job in jobs_of(entries):
        for name in (job.file, f"{job.file}{BEGUN}"):
            (build / name).unlink(missing_ok=True)


def _fresh(file: Path, entry: Entry, history: History) -> bool:
    if not file.is_file():
        return False
    result = json.loads(file.read_text(encoding="utf-8"))
    commit = result["provenance"].get("git_commit")
    whole = UNFINISHED not in result.get("settings", {})
    return whole and commit == source_commit(history.root).commit and not why_stale(result, history, entry.only)


def _entry(name: str) -> Entry:
    return next(entry for entry in TABLE if entry.name == name)
