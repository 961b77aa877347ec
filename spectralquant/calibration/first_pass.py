"""The first pass over the text: every step's sums, checkpoints, and the windows that are kept for the second pass.

Several processes share the steps. What each adds up goes to the first at every checkpoint, so that a checkpoint always
holds the first k steps, whoever did them, and any number of processes can go on from it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spectralquant.calibration.capture.samples import SampleWindow, keep_sample, sample_bytes, sample_indices
from spectralquant.calibration.capture.step import CapturedStep, capture_step
from spectralquant.calibration.checkpoint import EVERY, Checkpoint
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.sums import CalibrationSums
from spectralquant.hooks.decoder import longest_context
from spectralquant.models.load import LoadedModel
from spectralquant.processes import Processes

GOLDEN = 0.6180339887498949


def shares(steps: Sequence[int], size: int, kept: Sequence[int]) -> list[list[int]]:
    """Which of `steps` each of `size` processes does: equally many, those that are kept by the first where it can."""
    wanted = set(kept)
    order = sorted(steps, key=lambda index: index not in wanted)
    count = -(-len(order) // size)
    mine = sorted(order[:count])
    rest = sorted(order[count:])
    return [mine, *(rest[i :: size - 1] for i in range(size - 1))] if size > 1 else [mine]


def window_offset(model: nn.Module, settings: CalibrationSettings, index: int) -> int:
    """Position of a window, spread over all that the model has: the hot tier codes rotated keys, and those of the first
    window's length say little about later ones (slow rotations have hardly begun there).
    """
    room = (longest_context(model) or 0) - settings.window
    return int(index * GOLDEN % 1 * room) if room > 0 and "hot" in settings.tiers else 0


@dataclass
class FirstPass:
    """windows: int64 `[steps, T]`. offset: position of a window, by its index. far: whether gradients flow only through reads from beyond the recent window."""

    loaded: LoadedModel
    windows: Tensor
    settings: CalibrationSettings
    sums: CalibrationSums
    far: bool
    offset: Callable[[int], int]
    checkpoint: Checkpoint | None
    processes: Processes
    progress: Callable[[str, int, int], None]
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("samples", "checkpoints"), 0.0))

    def run(self, *, resume: bool) -> list[SampleWindow]:
        """Do all steps (from the checkpoint on, with `resume`); the sums are then the first process's, the samples too."""
        done = self._begin(resume)
        wanted = self._wanted()
        samples: dict[int, SampleWindow] = {}
        every = EVERY * self.processes.size if self.checkpoint is not None else self.settings.steps
        try:
            while done < self.settings.steps:
                stop = min((done // every + 1) * every, self.settings.steps)
                done = self.share(done, stop, wanted, samples)
        except KeyboardInterrupt:
            if self._writes and self.processes.size == 1 and self._counted:
                self.checkpoint.save(self._counted, self.sums.state())
            raise
        self.progress("calibrate", self.settings.steps, self.settings.steps)
        self.processes.leave()
        if not self.processes.first:
            return []
        for index in wanted:
            if index not in samples:
                self.progress("sample windows", wanted.index(index), len(wanted))
                samples[index] = self._sample(index, self._capture(index, sample=True))
        return [samples[i] for i in wanted]

    @property
    def _writes(self) -> bool:
        return self.checkpoint is not None and self.processes.first

    def _begin(self, resume: bool) -> int:
        done = 0
        if self._writes:
            if resume:
                done, state = self.checkpoint.load()
                if state:
                    self.sums.load_state(state)
            else:
                self.checkpoint.begin()
        self._counted = done
        return self.processes.agree(done)

    def share(self, start: int, stop: int, wanted: Sequence[int], samples: dict[int, SampleWindow]) -> int:
        """Do the steps from `start` to `stop` together with the other processes and keep a checkpoint of them."""
        own = shares(range(start, stop), self.processes.size, wanted)[self.processes.rank]
        for number, index in enumerate(own):
            self.progress("calibrate", min(stop, start + number * self.processes.size), self.settings.steps)
            keep = index in wanted and self.processes.first
            step = self._capture(index, sample=keep)
            self.sums.add(step, self.windows[index])
            self._counted = index + 1
            if keep:
                with self._timed("samples"):
                    samples[index] = self._sample(index, step)
        if self.processes.size > 1:
            state = self.sums.state()
            self.processes.add_up(state.values())
            self.sums.load_state(state)
            if not self.processes.first:
                self.sums.clear()
        if self._writes and self.checkpoint.due(state := self.sums.state()):
            with self._timed("checkpoints"):
                self.checkpoint.save(stop, state)
        return stop

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Note how long work other than steps takes; what runs on a GPU is waited for."""
        if self.loaded.device.type == "cuda":
            torch.cuda.synchronize(self.loaded.device)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds[name] + time.perf_counter() - start, 3)

    def _wanted(self) -> list[int]:
        element, backward = self.loaded.model.dtype.itemsize, self.settings.metric == "fisher"
        size = sample_bytes(self.loaded.geometry, self.settings.window, element, backward=backward)
        return sample_indices(self.settings.steps, size, self.settings.sample_bytes, self.settings.sample_windows)

    def _capture(self, index: int, *, sample: bool) -> CapturedStep:
        return capture_step(
            self.loaded.model,
            self.loaded.geometry,
            self.windows[index],
            backward=self.settings.metric == "fisher",
            received_block=self.settings.block if sample else None,
            far_block=self.settings.block if self.far else None,
            near_blocks=self.settings.near_blocks,
            offset=self.offset(index),
            queries=self.settings.metric == "attention",
            recompute=self.settings.recompute,
        )

    def _sample(self, index: int, step: CapturedStep) -> SampleWindow:
        return keep_sample(step, self.windows[index], self.settings.block, self.settings.near_blocks)
