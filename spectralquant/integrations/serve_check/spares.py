"""Processes that import the engine before they are told what to do: importing vLLM takes longer than starting its engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from spectralquant.integrations.serve_check.process import CHILD, WAIT, surroundings

CORES = 8  # fewer are needed by the engine that is being measured


class Waiting:
    """A process that imports, then waits."""

    def __init__(self, log_file: Path, architectures: Sequence[str] = ()) -> None:
        self._log_file = log_file
        with open(log_file, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", CHILD, WAIT, *architectures],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=surroundings(),
                text=True,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def go(self, order_file: Path, report_file: Path, log_file: Path, timeout: float) -> int:
        """Carry out an order; the exit code, −1 where it took longer than `timeout` seconds. What it printed is in `log_file`."""
        self._log_file.replace(log_file)
        assert self._process.stdin is not None
        try:
            self._process.communicate(f"{order_file}\n{report_file}\n", timeout)
            return self._process.returncode
        except subprocess.TimeoutExpired:
            return -1
        finally:
            self.end()

    def end(self) -> None:
        """End it, where it still runs."""
        if self.alive:
            self._process.kill()
            self._process.wait()
        self._log_file.unlink(missing_ok=True)


class Spares:
    """`count` such processes, one ready while another works.

    On machines with few cores none: importing would disturb what is measured. architectures: of the model that will be served, as
    its config.json names them.
    """

    def __init__(self, folder: Path, count: int, architectures: Sequence[str] = ()) -> None:
        self._folder, self._architectures = folder, architectures
        self._left = count if (os.cpu_count() or 1) >= CORES else 0
        self._spare: Waiting | None = None

    def __enter__(self) -> Spares:
        self._prepare()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spare is not None:
            self._spare.end()
            self._spare = None

    def _prepare(self) -> None:
        if self._left:
            self._spare = Waiting(self._folder / f"spare-{self._left}.log", self._architectures)
            self._left -= 1

    def take(self) -> Waiting | None:
        """The one that is ready, or None; the next one begins to get ready."""
        spare, self._spare = self._spare, None
        if spare is not None and not spare.alive:  # a fresh one shows why
            self._left = 0
            spare.end()
            spare = None
        self._prepare()
        return spare
