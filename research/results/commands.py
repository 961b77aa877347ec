"""Commands of the table as they run: in a folder of their own, so that the tree stays clean meanwhile."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from research.results.stale import ROOT
from research.results.table import PROFILES, Entry
from spectralquant.errors import InputError
from spectralquant.text.read import load_text

TEXT = "wiki.test.raw"
RESUMABLE = ("calibrate", "compare", "generate", "profile", "study")
LEAST = 1_000_000
MANUAL = 24_000  # characters, about 6,000 tokens: the built-in model has 8,192 positions


def part_file(entry: Entry, part: str) -> str:
    """The file of a part, beside the whole."""
    return f"{entry.name}-part-{part}.json"


def command_of(entry: Entry, command: str, text: Path, part: str = "", resume: bool = False) -> list[str]:
    """A command of the table as arguments: paths are names in the folder it runs in, so that results name none of this machine.

    resume: go on with what an interrupted run of it has kept.

    Raises:
        InputError: it reads WikiText, and `text` is not there.
    """
    places = {
        **{name: name for name in PROFILES},
        "out": f"{entry.name}.json",
        "part": part_file(entry, part),
        "text": TEXT,
        "manual": "manual.txt",
    }
    words = [word.format(**places) for word in shlex.split(command)]
    if words[0] == "sq":
        words = [sys.executable, "-m", "sqcli", *words[1:]]
        if words[3] in ("study", "compare"):
            words.append("--quotable")
        if resume and words[3] in RESUMABLE:
            words.append("--resume")
    else:
        words[0] = sys.executable
    if TEXT in shlex.join(words) and not text.is_file():
        raise InputError(
            f"{entry.name} reads WikiText-2 raw test, and there is no {text}. It is public; write it with the `datasets` package "
            "(wikitext, wikitext-2-raw-v1, test), a line each, and name it with --text (make: WIKI=PATH)."
        )
    return words


def shown(words: Sequence[str]) -> str:
    """A command in one line, as a person would type it."""
    return shlex.join(["sq", *words[3:]] if words[2] == "sqcli" else ["python", *words[1:]])


def require_text(text: Path) -> None:
    """WikiText-2 raw test must be a text, and about as long as it is: a shorter one fails after hours.

    Raises:
        InputError: it is not there, no text, or too short.
    """
    if text.is_dir() or not text.is_file():
        what = "is a folder" if text.is_dir() else "is not there"
        raise InputError(f"--text {str(text)!r} {what}. Give the file of WikiText-2 raw test.")
    try:
        length = len(text.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"--text {text} cannot be read as UTF-8 ({error}). Give WikiText-2 raw test.") from None
    if length < LEAST:
        raise InputError(f"--text {text} has {length:,} characters, and WikiText-2 raw test more than {LEAST:,}.")


def prepare(build: Path, text: Path) -> None:
    """The folder that commands run in, with the texts they read by name."""
    build.mkdir(parents=True, exist_ok=True)
    if text.is_file():
        shutil.copyfile(text, build / TEXT)
    manual = "\n\n".join(load_text("builtin:pydoc"))[-MANUAL:]
    (build / "manual.txt").write_text(manual, encoding="utf-8")


def surroundings() -> dict[str, str]:
    """The environment of commands: this checkout's code, whatever is installed."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": paths}
