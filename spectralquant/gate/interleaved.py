"""Two installs timed in turn on one machine: A B A B …, each in a process of its own that waits while the other works."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spectralquant.errors import InputError
from spectralquant.files import user_path
from spectralquant.gate.statistics import ENOUGH_SAMPLES, LEAST_SAMPLES
from spectralquant.provenance import provenance
from spectralquant.results.checks import MetricRow
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results

Progress = Callable[[str, int, int], None]
WORKER = "spectralquant.gate.suites.timing"


class Side:
    """One install's worker."""

    def __init__(self, command: list[str], environment: dict[str, str], name: str) -> None:
        self.name = name
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close); a pipe that nobody drains would stop a worker that says much
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True, env=environment
        )

    def answer(self) -> Any:
        """The next line of JSON.

        Raises:
            InputError: the worker ended, or said something else.
        """
        line = self.process.stdout.readline()
        if not line:
            raise self._lost()
        try:
            return json.loads(line)
        except ValueError:
            raise InputError(f"{self.name} cannot be timed: it answered {line.strip()[:80]!r}.") from None

    def _lost(self) -> InputError:
        self.process.wait()
        self.said.seek(0)
        last = (self.said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        return InputError(f"{self.name} cannot be timed: {last}. It must be an install that has `sq gate`.")

    def round(self) -> dict[str, float]:
        """Seconds of every operation, once."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._lost() from None
        return self.answer()

    def close(self) -> None:
        """End the worker."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.said.close()


def compare_installs(other: str, rounds: int, progress: Progress) -> tuple[Results, Results]:
    """Results files of the other install (the baseline) and of this one, with paired samples.

    Raises:
        InputError: fewer rounds than the statistics take, or no install at `other`.
    """
    if rounds < LEAST_SAMPLES:
        raise InputError(f"--rounds {rounds}: at least {LEAST_SAMPLES} are needed, {ENOUGH_SAMPLES} recommended.")
    sides: list[Side] = []
    try:
        for command, environment, name in (
            _other(other),
            ([sys.executable, "-m", WORKER], _environment(), "this install"),
        ):
            progress(f"starting {name}", len(sides), 2)
            sides.append(Side(command, environment, name))
            sides[-1].answer()
        samples: list[dict[str, list[float]]] = [{}, {}]
        for done in range(rounds):
            progress("rounds", done, rounds)
            order = (0, 1) if done % 2 == 0 else (1, 0)
            for i in order:
                for name, seconds in sides[i].round().items():
                    samples[i].setdefault(name, []).append(seconds)
    finally:
        for side in sides:
            side.close()
    return tuple(_result(times, side.name) for times, side in zip(samples, sides, strict=True))


def _result(samples: dict[str, list[float]], name: str) -> Results:
    rows = [MetricRow(metric=f"timing/{op}/seconds", samples=s, raw=True) for op, s in samples.items()]
    return results_file("gate", rows, provenance(install=name), suite="timing")


def _environment(folder: Path | None = None) -> dict[str, str]:
    environment = dict(os.environ)
    if folder is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(folder / "kernels")])
    return environment


def _other(path: str) -> tuple[list[str], dict[str, str], str]:
    """Command, environment and name of the other install: a virtual environment, a Python executable, or a checkout."""
    where = user_path(path)
    if (where / "spectralquant" / "__init__.py").is_file():
        return [sys.executable, "-m", WORKER], _environment(where.resolve()), str(where)
    for python in (where / "bin" / "python", where / "Scripts" / "python.exe", where):
        if python.is_file() and os.access(python, os.X_OK):
            clean = {k: v for k, v in _environment().items() if k != "PYTHONPATH"}
            return [str(python.absolute()), "-m", WORKER], clean, str(where)
    raise InputError(
        f"--against {path} is not an install: give a virtual environment, a Python executable in one, or a checkout "
        "of this project."
    )
