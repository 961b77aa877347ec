"""A run shared by several processes, on a GPU each: every process makes some of its parts, and one puts them together."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from spectralquant.claims import claimed
from spectralquant.errors import BusyError, InputError
from spectralquant.results.unfinished import UnfinishedRun

MOST = 64
TRIES = 20


def parse_part(text: str, option: str = "--part") -> tuple[int, int]:
    """`2/4` as (2, 4): the second of four parts.

    Raises:
        InputError: it is no such thing.
    """
    match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text.strip())
    number, count = (int(n) for n in match.groups()) if match else (0, 0)
    if not 1 <= number <= count or not 2 <= count <= MOST:
        raise InputError(f"{option} {text!r} must be as 1/2: the first of two parts, of at most {MOST}.")
    return number, count


class PartOfRun(UnfinishedRun):
    """The parts that are this process's; what it finishes stays for the run itself, which is begun with `resume` when all
    processes have ended. Values of other processes are empty lists, so it is for runs whose values are lists of rows.

    Args:
        part: which of how many, from 1.
        unit: what a value's name belongs to; values of one unit are made by one process. Units take turns.
    """

    def __init__(
        self,
        command: str,
        inputs: Mapping[str, Any],
        part: tuple[int, int],
        *,
        unit: Callable[[str], str] = lambda name: name,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__(command, inputs, resume=True, report=report)
        self.part, self.unit = part, unit
        self._units: list[str] = []

    def _claim_run(self, what: str) -> None:
        number, count = self.part
        self._claim.enter_context(claimed(self._claim_file().with_suffix(f".part-{number}-of-{count}.run"), what))
        self._require_no_whole(what)

    def _require_no_whole(self, what: str) -> None:
        """Other parts ask the same and hold the lock for a moment, so it is asked again."""
        for _ in range(TRIES):
            with contextlib.suppress(BusyError), claimed(self._claim_file(), what):
                return
            time.sleep(0.1)
        raise BusyError("the whole run is on its way.")

    def _busy(self) -> None:
        """Raise BusyError: another process makes this part, or the whole run."""
        self._lose("another process works on the same run.")

    def _lose(self, why: str) -> None:
        """A part whose rows cannot be kept is of no use.

        Raises:
            BusyError: always.
        """
        self._claim.close()
        raise BusyError(f"--part: finished rows cannot be kept: {why}")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._claim.close()

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns where the unit of `name` is this process's; else an empty list, and nothing is made."""
        unit = self.unit(name)
        if unit not in self._units:
            self._units.append(unit)
        number, count = self.part
        if self._units.index(unit) % count != number - 1:
            return []
        return super().value(name, make)

    def ending(self) -> str:
        """What is to be done when this part has ended."""
        number, count = self.part
        return (
            f"Part {number} of {count} is kept in {self.folder}. When all {count} have ended, the same command with --resume "
            "in place of --part writes the results."
        )
