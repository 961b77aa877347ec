"""Checkpoints of a calibration's sums: a killed run goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectralquant.errors import InputError
from spectralquant.files import atomic_path, read_json, write_json
from spectralquant.processes import LostProcessError
from spectralquant.results.unfinished import leave_advice

EVERY = 25
BYTES_PER_SECOND = 5e8
SHARE = 0.2


class Checkpoint:
    """A folder beside the profile with the sums after k steps.

    `fingerprint` describes the run they belong to. of_this_run: the folder is of this run.
    """

    def __init__(self, stem: Path, fingerprint: dict[str, Any]) -> None:
        self.folder = stem.with_name(stem.name + ".partial")
        self.fingerprint = fingerprint
        self.of_this_run = False
        self.since = time.perf_counter()
        self.step = 0

    def begin(self) -> None:
        """Note that a run has started, and which."""
        self._note(0, None)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Around the run: an error of writing, and Ctrl-C, say what stays on the disk.

        Raises:
            InputError: the disk is full, or a folder cannot be written. LostProcessError: another process ended.
        """
        try:
            yield
        except KeyboardInterrupt:
            leave_advice(self._advice())
            raise
        except (InputError, LostProcessError) as error:
            if not self.of_this_run or not self.folder.is_dir():
                raise
            raise type(error)(
                f"{error} What is finished stays in {self.folder}: the same command with --resume goes on from there; delete "
                "that folder to give the attempt up."
            ) from error

    def due(self, state: dict[str, Tensor]) -> bool:
        """Whether enough was done since the last one: writing is to take no more than a fifth of the time."""
        size = sum(t.numel() * t.element_size() for t in state.values())
        return time.perf_counter() - self.since > size / BYTES_PER_SECOND / SHARE

    def _advice(self) -> str:
        if not self.step:
            return "No step was finished yet; the same command begins anew."
        return f"{self.step} steps are kept in {self.folder}; the same command with --resume goes on from there."

    def save(self, step: int, state: dict[str, Tensor]) -> None:
        """Store the sums after `step` steps; the previous checkpoint is replaced only when this one is complete."""
        name = f"sums-{step}.safetensors"
        with atomic_path(self.folder / name) as path:
            _write({k: v.detach().cpu().contiguous() for k, v in state.items()}, path)
        self._note(step, name)
        self.since = time.perf_counter()

    def _note(self, step: int, file: str | None) -> None:
        self.of_this_run, self.step = True, step
        write_json(self.folder / "state.json", {"step": step, "file": file, "fingerprint": self.fingerprint})
        for old in self.folder.glob("sums-*.safetensors"):
            if old.name != file:
                old.unlink()

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """Step count and sums of the interrupted run; 0 and no sums where none got as far as a checkpoint.

        Raises:
            InputError: it belongs to another run (the message names what differs), or is damaged.
        """
        file = self.folder / "state.json"
        if not file.is_file():
            self.begin()
            return 0, {}
        try:
            state = read_json(file, "The checkpoint")
            stored = state["fingerprint"]
            differing = [k for k, v in self.fingerprint.items() if stored.get(k) != v]
            if not differing:
                sums = {} if state["file"] is None else load_file(self.folder / state["file"])
                self.of_this_run, self.step = True, int(state["step"])
                return self.step, sums
        except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
            raise InputError(f"The checkpoint in {self.folder} is damaged ({error}). Run without --resume.") from error
        details = ", ".join(f"{k} was {stored.get(k)!r} and is {self.fingerprint[k]!r}" for k in differing)
        raise InputError(
            f"The checkpoint in {self.folder} belongs to another run: {details}. Use the same options, "
            "or run without --resume."
        )

    def remove(self) -> None:
        """Delete the checkpoint of a finished run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file. Its library tells what the system refused in words alone: raised here as the OSError that it is."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
