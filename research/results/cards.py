"""GPUs that jobs take and give back: a timing has its own, figures of quality share one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from research.results.jobs import Job
from research.results.table import EVERY
from spectralquant.errors import InputError

SHARING = 3


@dataclass
class Cards:
    """names: as CUDA_VISIBLE_DEVICES has them; on a CPU one card without a name."""

    names: Sequence[str]
    users: dict[str, list[Job]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.users = {name: [] for name in self.names}

    def fits(self, job: Job) -> bool:
        """Whether there are as many as the job needs."""
        return job.gpus <= len(self.names)

    def take(self, job: Job) -> list[str] | None:
        """The cards of a job that begins, or None where it has to wait."""
        count = len(self.names) if job.gpus == EVERY else job.gpus
        able = [name for name, users in self.users.items() if not users or self._joins(job, users)]
        if job.shares:  # rather together on one card than one on each
            able.sort(key=lambda name: -len(self.users[name]))
        if len(able) < count:
            return None
        for name in able[:count]:
            self.users[name].append(job)
        return able[:count]

    def give(self, job: Job) -> None:
        """The job has ended."""
        for users in self.users.values():
            if job in users:
                users.remove(job)

    def environment(self, taken: Sequence[str]) -> dict[str, str]:
        """What tells a process its cards."""
        return {} if self.names == [""] else {"CUDA_VISIBLE_DEVICES": ",".join(taken)}

    def cores(self, taken: Sequence[str]) -> set[int]:
        """The processor's cores that go with cards: as large a share of them as of the cards."""
        cores = sorted(os.sched_getaffinity(0))
        each = max(1, len(cores) // len(self.names))
        places = [list(self.names).index(name) for name in taken]
        return {core for place in places for core in cores[place * each : (place + 1) * each]} or set(cores)

    @staticmethod
    def _joins(job: Job, users: Sequence[Job]) -> bool:
        return job.shares and len(users) < SHARING and all(user.shares for user in users)


def visible_cards(needs: Sequence[str]) -> list[str]:
    """The GPUs of this machine, or of CUDA_VISIBLE_DEVICES; one card without a name where none are needed."""
    if not any("gpu" in need for need in needs):
        return [""]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given:
        return given.split(",")
    import torch

    return [str(i) for i in range(torch.cuda.device_count())] or [""]


def machine(needs: Sequence[str], count: int | None = None) -> list[str]:
    """The cards to use: all, or `count` of them.

    Raises:
        InputError: this machine lacks what `needs` asks for, before any work.
    """
    cards = visible_cards(needs)
    if any("gpu" in need for need in needs) and cards == [""]:
        raise InputError("--needs gpu and serving-gpu are for a machine with a GPU, and this one shows none.")
    if any("serving" in need for need in needs) and find_spec("vllm") is None:
        raise InputError(
            "--needs serving is for an environment with vLLM, which is not installed here: make results-serving."
        )
    if count is not None and count > len(cards):
        raise InputError(f"--gpus {count}: there {'is' if len(cards) == 1 else 'are'} {len(cards)}.")
    return cards[:count]
