"""Write the files under profiles/results anew, each by its one command: `make results` (CPU), `make results-gpu`.

Work goes on in `build/results`, so that the tree stays clean while commands run; a file moves to profiles/results when its
command has ended. What is there from this commit is not made again, and a command that was cut off gets `--resume`, so an interrupted
run goes on; files that are fresh already are left alone unless `--again` or `--only` asks. On several GPUs files and their parts are made side by side, a GPU each
for what is timed, and each command's output goes to build/results/logs. `--check` moves nothing and compares with the stored files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from research.results.borrowed import borrow
from research.results.cards import Cards, machine
from research.results.commands import command_of, prepare, require_text
from research.results.compare import differences
from research.results.jobs import entry_done, forget, job_done, jobs_of, with_sources
from research.results.side_by_side import Run
from research.results.stale import LIST, RESULTS, ROOT, History, stale_files, written
from research.results.table import TABLE, Entry
from spectralquant.errors import InputError
from spectralquant.files import write_text
from spectralquant.origin.quotable import require_quotable_source
from sqcli.streams import flush_streams, tolerant_streams

BUILD = ROOT / "build" / "results"
SHOWN = 12
INTERRUPTED = 130


def chosen(needs: Sequence[str], only: Sequence[str], again: bool, stale: Sequence[str]) -> list[Entry]:
    """Entries to run, in the table's order.

    Raises:
        InputError: a name that the table does not have, or that needs another machine.
    """
    names = {entry.name: entry for entry in TABLE}
    for name in only:
        if name not in names:
            raise InputError(f"--only {name}: there is no such results file; there are {', '.join(names)}.")
        if names[name].needs not in needs:
            target = "results" if names[name].needs == "cpu" else f"results-{names[name].needs}"
            raise InputError(f"--only {name} needs {names[name].needs}: run make {target}.")
    want = set(only) or {n for n, e in names.items() if e.needs in needs and (again or n in stale)}
    return [entry for entry in TABLE if entry.name in want]


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all is written, or within tolerances; 1: figures differ, or a command failed; 2: it cannot begin; 130: Ctrl-C."""
    given = _parser().parse_args(arguments)
    needs = tuple(given.needs or ("cpu",))
    text = given.text or ROOT / "wiki.test.raw"
    if idle := _idle(given, needs):
        print(idle, file=sys.stderr)
        return 2
    if given.list:
        for entry in [entry for entry in TABLE if not given.needs or entry.needs in given.needs]:
            print(f"{entry.name:34} {entry.needs} {entry.minutes:3} min  {entry.command}")
            for part in entry.parts:
                print(f"{'':34} part {part.minutes:2} min  {part.command}")
        return 0
    history = History()
    try:
        require_quotable_source()
        entries = chosen(needs, given.only, given.again or given.check, [*missing(), *stale_files(history=history)])
        if given.text is not None or text.exists():
            require_text(text)
        cards = Cards(machine(needs, given.gpus))
        prepare(BUILD, text)
        if given.only and given.again:
            forget(entries, BUILD)
        everything = jobs_of(with_sources(entries, BUILD, history))
        jobs = [job for job in everything if not job_done(job, BUILD, history)]
        for job in jobs:  # what cannot run is refused before hours of work
            for command in job.commands:
                command_of(job.entry, command, text, job.part)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for job in everything:
        if job not in jobs:
            print(f"{job.name}: made by an earlier run of this commit, kept in {BUILD}")
    try:
        failed = Run(jobs, cards, BUILD, text, given.minutes).run()
    except KeyboardInterrupt:
        same = "the same command without --again" if given.only and given.again else "the same command"
        print(f"Interrupted. What has ended is kept in {BUILD}; {same} goes on from there.", file=sys.stderr)
        return INTERRUPTED
    for why in failed.values():
        print(why, file=sys.stderr)
    made = [entry for entry in entries if entry_done(entry, BUILD, history)]
    for entry in made:
        borrow(BUILD / f"{entry.name}.json", entry, (BUILD, RESULTS))
    if given.check:
        return int(sum(_checked(entry) for entry in made) + len(failed) > 0)
    for entry in made:
        shutil.copyfile(BUILD / f"{entry.name}.json", RESULTS / f"{entry.name}.json")
    for entry in TABLE:  # a source may be newer than the file that borrows from it
        if (file := RESULTS / f"{entry.name}.json").is_file():
            borrow(file, entry, (RESULTS,))
    write_text(LIST, written(stale_files(history=history)))
    if made:
        print("Now run `make readme`, look at the differences, and commit.")
    elif not entries:
        print("Nothing is stale. --again makes all files anew, --only NAME one.")
    return int(bool(failed))


def missing() -> list[str]:
    """Files of the table that were never made."""
    return [entry.name for entry in TABLE if not (RESULTS / f"{entry.name}.json").is_file()]


def _idle(given: argparse.Namespace, needs: Sequence[str]) -> str:
    """What is asked for and would do nothing; empty where there is none."""
    asked = [name for name in ("check", "again", "only", "gpus", "minutes") if getattr(given, name)]
    if given.list and asked:
        return f"--{asked[0]} does nothing with --list, which makes nothing. Leave one of them out."
    if given.gpus and not any("gpu" in need for need in needs):
        return "--gpus does nothing without --needs gpu or serving-gpu: other files are made on the processor. Leave it out."
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--needs",
        action="append",
        choices=("cpu", "gpu", "serving", "serving-gpu"),
        help="which machine this is; a GPU with vLLM is gpu and serving-gpu (default: cpu)",
    )
    parser.add_argument("--only", action="append", default=[], help="this file (may be repeated)")
    parser.add_argument(
        "--again",
        action="store_true",
        help="fresh files too; with --only also what an earlier run of this commit has kept",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with the stored files, and leave those as they are"
    )
    parser.add_argument("--list", action="store_true", help="show the table and end")
    parser.add_argument("--text", type=Path, help="WikiText-2 raw test (default: wiki.test.raw of this checkout)")
    parser.add_argument("--gpus", type=_positive, help="use so many of the GPUs (default: all)")
    parser.add_argument("--minutes", type=_positive, help="end within about so many minutes; run again to go on")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _checked(entry: Entry) -> int:
    """1 where a figure is out of its tolerance."""
    stored, file = (folder / f"{entry.name}.json" for folder in (RESULTS, BUILD))
    if not stored.is_file():
        print(f"{entry.name}: there is no stored file.")
        return 1
    found = differences(*(json.loads(p.read_text(encoding="utf-8")) for p in (stored, file)))
    print(f"{entry.name}: {len(found)} figures out of tolerance" if found else f"{entry.name}: within tolerances")
    for line in found[:SHOWN]:
        print(f"  {line}")
    return int(bool(found))


if __name__ == "__main__":
    tolerant_streams()
    sys.exit(flush_streams(main()))
