"""Write the files under profiles/results anew, each by its one command: `make results` (CPU), `make results-gpu`.

Work goes on in `build/results`, so that the tree stays clean while commands run; a file moves to profiles/results when its
command has ended. What is there from this commit is not made again, so an interrupted run goes on; files that are fresh
already are left alone unless `--again` or `--only` asks. `--check` moves nothing and compares with the stored files.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from research.results.compare import differences
from research.results.stale import LIST, RESULTS, ROOT, History, stale_files, why_stale, written
from research.results.table import PROFILES, TABLE, Entry
from spectralquant.errors import InputError, SpectralQuantError
from spectralquant.files import write_text
from spectralquant.origin.checkout import source_commit
from spectralquant.origin.quotable import require_quotable_source
from spectralquant.text.read import load_text

BUILD = ROOT / "build" / "results"
SHOWN = 12
MANUAL = 24_000  # characters, about 6,000 tokens: the built-in model has 8,192 positions


def chosen(needs: str, only: Sequence[str], again: bool, stale: Sequence[str]) -> list[Entry]:
    """Entries to run, in the table's order, with those whose profile they read before them.

    Raises:
        InputError: a name that the table does not have, or that needs another machine.
    """
    names = {entry.name: entry for entry in TABLE}
    for name in only:
        if name not in names:
            raise InputError(f"--only {name}: there is no such results file; there are {', '.join(names)}.")
        if names[name].needs != needs:
            raise InputError(f"--only {name} needs {names[name].needs}: run make results{'-gpu' * (needs == 'cpu')}.")
    want = set(only) or {n for n, e in names.items() if e.needs == needs and (again or n in stale)}
    return [entry for entry in TABLE if entry.name in want]


def command_of(entry: Entry, command: str, text: Path) -> list[str]:
    """A command of the table as arguments, run in `BUILD`: paths are names there, so that results name no folder of this machine."""
    places = {
        **{name: name for name in PROFILES},
        "out": f"{entry.name}.json",
        "text": "wiki.test.raw",
        "manual": "manual.txt",
    }
    words = [word.format(**places) for word in shlex.split(command)]
    if words[0] == "sq":
        words = [sys.executable, "-m", "sqcli", *words[1:]]
        if words[3] in ("study", "compare"):
            words.append("--quotable")
    else:
        words[0] = sys.executable
    if "wiki.test.raw" in command_text(words) and not text.is_file():
        raise InputError(
            f"{entry.name} reads WikiText-2 raw test, and there is no {text}. It is public; write it with the `datasets` package "
            "(wikitext, wikitext-2-raw-v1, test), a line each, and name it with --text (make: WIKI=PATH)."
        )
    return words


def command_text(words: Sequence[str]) -> str:
    """A command in one line."""
    return shlex.join(words)


def prepared(text: Path) -> None:
    """The folder that commands run in, with the texts they read by name."""
    BUILD.mkdir(parents=True, exist_ok=True)
    if text.is_file():
        shutil.copyfile(text, BUILD / "wiki.test.raw")
    manual = "\n\n".join(load_text("builtin:pydoc"))[-MANUAL:]
    (BUILD / "manual.txt").write_text(manual, encoding="utf-8")


def done_before(entry: Entry, history: History) -> bool:
    """Whether `BUILD` holds this commit's file already, and the profile that the command makes beside it."""
    file = BUILD / f"{entry.name}.json"
    if not file.is_file():
        return False
    result = json.loads(file.read_text(encoding="utf-8"))
    commit = result["provenance"].get("git_commit")
    made = [name for name in PROFILES if "{" + name + "}" in entry.command and not entry.after]
    there = all((BUILD / f"{name}.json").is_file() for name in made)
    return there and commit == source_commit(history.root).commit and not why_stale(result, history, entry.only)


def run(entry: Entry, text: Path, history: History) -> float:
    """Run an entry's commands; seconds.

    Raises:
        InputError: it reads what is not there. SpectralQuantError: a command failed.
    """
    begin = time.monotonic()
    for other in entry.after:
        source = next(e for e in TABLE if e.name == other)
        if not done_before(source, history):
            run(source, text, history)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    for command in (*entry.before, entry.command):
        words = command_of(entry, command, text)
        print(f"{entry.name}: {command_text(['sq', *words[3:]] if words[2] == 'sqcli' else words)}", flush=True)
        done = subprocess.run(words, cwd=BUILD, env=os.environ | {"PYTHONPATH": paths}, check=False)
        if done.returncode not in (0, 1):
            raise SpectralQuantError(f"{entry.name}: the command ended with exit code {done.returncode}; see above.")
    return time.monotonic() - begin


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all is written, or within tolerances; 1: figures differ, or a command failed; 2: it cannot begin."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--needs", choices=("cpu", "gpu", "serving", "serving-gpu"), default="cpu", help="which machine this is"
    )
    parser.add_argument("--only", action="append", default=[], help="this file (may be repeated)")
    parser.add_argument("--again", action="store_true", help="fresh files too")
    parser.add_argument(
        "--check", action="store_true", help="compare with the stored files, and leave those as they are"
    )
    parser.add_argument("--list", action="store_true", help="show the table and end")
    parser.add_argument("--text", type=Path, default=ROOT / "wiki.test.raw", help="WikiText-2 raw test")
    given = parser.parse_args(arguments)
    if given.list:
        for entry in TABLE:
            print(f"{entry.name:34} {entry.needs} {entry.minutes:3} min  {entry.command}")
        return 0
    history = History()
    try:
        require_quotable_source()
        entries = chosen(given.needs, given.only, given.again or given.check, list(stale_files(history=history)))
        prepared(given.text)
        for entry in entries:  # what cannot run is refused before hours of work
            for command in (*entry.before, entry.command):
                command_of(entry, command, given.text)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    failed = 0
    for entry in entries:
        file = BUILD / f"{entry.name}.json"
        try:
            if not done_before(entry, history):
                print(f"{entry.name}: {run(entry, given.text, history):.0f} s", flush=True)
        except (InputError, SpectralQuantError) as error:
            print(error, file=sys.stderr)
            failed += 1
            continue
        if given.check:
            failed += _checked(entry, file)
    if not given.check:
        for entry in entries:
            if (BUILD / f"{entry.name}.json").is_file():
                shutil.copyfile(BUILD / f"{entry.name}.json", RESULTS / f"{entry.name}.json")
        write_text(LIST, written(stale_files(history=history)))
        print("Now run `make readme`, look at the differences, and commit.")
    return int(failed > 0)


def _checked(entry: Entry, file: Path) -> int:
    """1 where a figure is out of its tolerance."""
    stored = RESULTS / file.name
    if not stored.is_file():
        print(f"{entry.name}: there is no stored file.")
        return 1
    found = differences(*(json.loads(p.read_text(encoding="utf-8")) for p in (stored, file)))
    print(f"{entry.name}: {len(found)} figures out of tolerance" if found else f"{entry.name}: within tolerances")
    for line in found[:SHOWN]:
        print(f"  {line}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
