"""Finished parts of a run that has not ended, so that Ctrl-C or a crash costs one part and not all of them.

A run's folder is `CACHE/unfinished/COMMAND-KEY`; the key is a hash of everything that decides the result: inputs, options,
version and commit. So parts of another run are never taken for this one's. A run that ends deletes its folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spectralquant.claims import claimed
from spectralquant.errors import BusyError, InputError
from spectralquant.files import cache_folder, write_bytes, write_json
from spectralquant.origin.checkout import source_commit
from spectralquant.provenance import installed_version

INPUTS = "inputs.json"
CODE = ("git_commit", "version")
DESCRIPTIONS = {INPUTS, "state.json", "text.json"}
FORGET_AFTER_S = 60 * 24 * 3600
_advice = ""


class Kept:
    """Keeps nothing and makes every part anew: what a library call gets unless it asks for more."""

    folder: Path | None = None
    resume = False
    reused = 0

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, which JSON can hold."""
        return make()

    def data(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The bytes that `make` returns."""
        return make()

    def path(self, name: str) -> Path | None:
        """Where work that keeps its own state may put it; gone when the run ends."""
        return None if self.folder is None else self.folder / name

    def facts(self) -> dict[str, Any]:
        """For the provenance: how many parts come from an earlier, interrupted run."""
        return {"resumed_parts": self.reused} if self.reused else {}


NOTHING_KEPT = Kept()


class UnfinishedRun(Kept):
    """The parts of one run; a context manager around the work.

    Args:
        command: the name of the command.
        inputs: what decides the result, as JSON can hold it.
        resume: take finished parts from an interrupted run of the same inputs. Without it they are thrown away.
        report: told where a run begins or goes on, and once where parts cannot be kept: no room or rights, or another process
            works on the same run.
    """

    def __init__(
        self,
        command: str,
        inputs: Mapping[str, Any],
        *,
        resume: bool = False,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        source = source_commit()
        self.inputs = {
            "command": command,
            "version": installed_version("spectralquant-toolkit"),
            "git_commit": source.commit,
            **inputs,
        }
        key = hashlib.sha256(json.dumps(self.inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.command, self.resume, self.report = command, resume, report
        self.folder: Path | None = None
        self.reused = 0
        self._own = cache_folder() / "unfinished" / f"{command}-{key}"
        self._claim = contextlib.ExitStack()
        self._full = False

    def __enter__(self) -> UnfinishedRun:
        self._refuse_other_code()
        try:
            self._claim_run(f"unfinished sq {self.command}")
            self._begin()
            self.folder = self._own
        except BusyError:
            self._claim.close()
            self._busy()
        except (OSError, InputError) as error:
            self._lose(str(error))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            leave_advice(self.advice())
        if self.folder is not None and (kind is None or not self._finished()):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._claim.close()

    def _busy(self) -> None:
        """Another process works on the run.

        Raises:
            BusyError: what it has finished is asked for, which is not whole yet.
        """
        if self.resume:
            raise BusyError(
                f"--resume: another process works on this run of sq {self.command}, or on a part of it. Wait until it has ended; "
                "the same command then goes on with all that is finished."
            )
        self._lose("another process works on the same run.")

    def _claim_run(self, what: str) -> None:
        """Hold the run for this process: no other one does it, nor a part of it."""
        self._claim.enter_context(claimed(self._claim_file(), what))
        for lock in self._own.parent.glob(f".{self._own.name}.part-*.run.lock"):
            self._claim.enter_context(claimed(lock.with_name(lock.name[1:].removesuffix(".lock")), what))

    def _claim_file(self) -> Path:
        return self._own.with_suffix(".run")

    def advice(self) -> str:
        """What is left when the run ends now."""
        count = self._finished()
        if self.folder is None:
            return "Nothing is kept."
        if not count:
            return "Nothing was finished yet; the same command begins anew."
        parts = "1 finished part is" if count == 1 else f"{count} finished parts are"
        return f"{parts} kept in {self.folder}; the same command with --resume goes on from there."

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned when it was first called, by this run or the interrupted one; as JSON gives it back."""
        return json.loads(self.data(name, lambda: json.dumps(make()).encode()))

    def data(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The bytes that `make` returned when it was first called. A damaged file is made again."""
        if self.folder is None:
            return make()
        file = self.folder / _file_name(name)
        data = _read(file)
        if data is not None:
            self.reused += 1
            return data
        data = make()
        try:
            write_bytes(file, hashlib.sha256(data).digest() + data)
        except InputError as error:
            if not self._full:
                self._full = True
                self.report(f"From here on finished parts cannot be kept: {error}")
        return data

    def _refuse_other_code(self) -> None:
        """With `resume`: parts of the same inputs, made by another commit or version, are not mixed with new ones.

        Raises:
            InputError: there are such parts and none of this code's.
        """
        if not self.resume or self._finished():
            return
        for file in self._own.parent.glob(f"{self.command}-*/{INPUTS}"):
            try:
                inputs = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            same = json.loads(json.dumps(self.inputs, default=str))
            code = {name: inputs.pop(name, None) for name in CODE}
            own = {name: same.pop(name, None) for name in CODE}
            if inputs == same and code != own:
                raise InputError(
                    f"--resume: the interrupted run of this command was begun with commit {code['git_commit']} of version "
                    f"{code['version']}; this is commit {own['git_commit']} of version {own['version']}, and one results file "
                    f"never mixes two. Run that commit with --resume, or this one without."
                )

    def _begin(self) -> None:
        _forget_old(self._own.parent)
        parts = self._finished()
        if parts and not self.resume:
            self.report(
                f"An interrupted run of this command is given up ({parts} finished parts); --resume would go on."
            )
            shutil.rmtree(self._own)
        elif self.resume:
            self.report(
                f"Going on with {parts} finished parts."
                if parts
                else "There is no interrupted run of this command: beginning anew."
            )
        write_json(self._own / INPUTS, self.inputs)

    def _finished(self) -> int:
        """Parts, and whatever work keeps at `path`."""
        return sum(file.is_file() and file.name not in DESCRIPTIONS for file in self._own.rglob("*"))

    def _lose(self, why: str) -> None:
        self._claim.close()
        self.report(f"Finished parts of this run cannot be kept: {why} An interruption would lose them.")
        self.folder, self.resume = None, False


def leave_advice(text: str) -> None:
    """What a command says when it is interrupted: what is left, and how to go on."""
    global _advice
    _advice = text


def advice() -> str:
    """See `leave_advice`; empty where nothing was begun."""
    return _advice


def _file_name(name: str) -> str:
    clean = "".join(c if c.isalnum() else "-" for c in name)[:60]
    return f"{clean}-{hashlib.sha256(name.encode()).hexdigest()[:12]}.part"


def _read(file: Path) -> bytes | None:
    """The content of a part, or None where it is missing or damaged."""
    try:
        raw = file.read_bytes()
    except OSError:
        return None
    return raw[32:] if hashlib.sha256(raw[32:]).digest() == raw[:32] else None


def _forget_old(folder: Path) -> None:
    """Delete runs that nobody went on with for two months."""
    for run in folder.iterdir() if folder.is_dir() else ():
        if run.is_dir() and time.time() - run.stat().st_mtime > FORGET_AFTER_S:
            shutil.rmtree(run, ignore_errors=True)
