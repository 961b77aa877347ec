"""A small command line of every command, and ways to run one: in this process, or in one of its own (seconds of imports)."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from spectralquant.results.unfinished import leave_advice
from sqcli.app import main

SENTENCE = "The import statement binds names in the local namespace. "
TOKENS = ["--held-out", "1", "--held-out-window", "512", "--window", "384", "--target", "ratio=10"]


@dataclass(frozen=True)
class Place:
    """Where a command works: a profile, its model's folder, and a folder with long.txt, packet.sqkv and results.json."""

    profile: Path
    model: Path
    folder: Path

    @property
    def text(self) -> Path:
        return self.folder / "long.txt"

    @property
    def packet(self) -> Path:
        return self.folder / "packet.sqkv"

    @property
    def results(self) -> Path:
        return self.folder / "results.json"


def _on(place: Place) -> list[object]:
    return ["--profile", place.profile, "--model", place.model]


COMMANDS: dict[str, Callable[[Place], list[object]]] = {
    "doctor": lambda _: [],
    "calibrate": lambda p: ["--model", p.model, "--steps", 30, *TOKENS, "--out", p.folder / "made"],
    "show": lambda p: [p.profile],
    "profile": lambda _: ["--context", 2048, "--batch", 1, "--device", "cpu"],
    "compare": lambda p: [
        *["fp8", "h2o:keep=0.2", *_on(p), "--data", f"file:{p.text}"],
        *["--context", 640, "--windows", 1, "--needle", 0],
    ],
    "gate": lambda p: ["--run", "smoke", "--model", p.model, "--save", p.folder / "suite.json"],
    "report": lambda p: [p.results, "--out", p.folder / "page.html"],
    "pack": lambda p: [*_on(p), "--file", p.text, "--out", p.folder / "made.sqkv"],
    "unpack": lambda p: [p.packet, *_on(p)],
    "generate": lambda p: [*_on(p), "--file", p.text, "--new-tokens", 60, "--sample"],
    "inspect": lambda p: [p.packet],
    "serve-check": lambda p: [p.model],
    "study": lambda p: [
        *["index", *_on(p), "--data", f"file:{p.text}", "--window", 128, "--windows", 2],
        *["--out", p.folder / "study.json"],
    ],
}
SHAPE = "custom:layers=2,heads=4,kv_heads=2,head_dim=32,hidden=128,intermediate=256,vocab=300"
WAYS: dict[str, Callable[[Place], list[object]]] = {  # commands that work otherwise with an option
    "profile --generate": lambda _: [
        *["--shape", SHAPE, "--context", 300, "--batch", 1, "--new-tokens", 4, "--device", "cpu"]
    ],
}


def line(name: str, place: Place) -> list[str]:
    """The words after `sq`."""
    return [*name.split(), *map(str, (COMMANDS | WAYS)[name](place))]


def sq(*words: object) -> int:
    """The exit code of a command run in this process."""
    leave_advice("")  # a process runs one command; this one runs many
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


def said(*words: object) -> subprocess.CompletedProcess[str]:
    """As `process`, run in this process: exit code, stdout and stderr."""
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = sq(*words)
    texts = [stream.buffer.getvalue().decode() for stream in (out, error)]
    return subprocess.CompletedProcess([str(word) for word in words], code, *texts)


def process(*words: object, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: for what a process alone shows, as its start, its environment and its end."""
    return subprocess.run(
        [sys.executable, "-m", "sqcli.app", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **(env or {})},
        **options,
    )
