"""Several processes that calibrate one model together: who is first, and sums that are added up in it.

`torchrun` starts them and `torch.distributed` connects them: gloo for tensors on the CPU, NCCL for those on GPUs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from spectralquant.errors import InputError, SpectralQuantError

TIMEOUT = timedelta(minutes=30)


class LostProcessError(SpectralQuantError):
    """A process of the run ended before the others did."""


@dataclass
class Processes:
    """This process among `size` that share the work; alone without torchrun. seconds, bytes: spent on adding up.

    control: a gloo group, which notices at once when another process is gone. group: the processes that add up, where they
    are not all that were started.
    """

    rank: int = 0
    size: int = 1
    control: Any = field(default=None, compare=False)
    group: Any = field(default=None, compare=False)
    seconds: float = field(default=0.0, compare=False)
    bytes: int = field(default=0, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows progress."""
        return self.rank == 0

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors of equal shapes over all processes in the first; in the others they are undefined afterwards.

        Raises:
            LostProcessError: one of the others ended.
        """
        if self.size == 1:
            return
        start = time.perf_counter()
        with self._together("adding up what the processes found"):
            distributed.monitored_barrier(self.control, timeout=TIMEOUT)
            waiting = []
            for tensor in tensors:
                waiting.append(distributed.reduce(tensor, dst=0, group=self.group, async_op=True))
                self.bytes += tensor.numel() * tensor.element_size()
            for work in waiting:
                work.wait()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start

    def agree(self, value: int) -> int:
        """The first process's value, in all of them.

        Raises:
            LostProcessError: one of the others ended.
        """
        if self.size == 1:
            return value
        with self._together("agreeing on the step to go on from"):
            both = [value]
            distributed.broadcast_object_list(both, src=0, group=self.group, device="cpu")
        return both[0]

    def leave(self) -> None:
        """Part from the others, once all are here: what the first goes on with, it does alone.

        Raises:
            LostProcessError: one of the others ended.
        """
        if self.size > 1:
            with self._together("finishing the steps"):
                distributed.monitored_barrier(self.control, timeout=TIMEOUT)
            distributed.destroy_process_group()

    @contextlib.contextmanager
    def _together(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo and NCCL raise it and its descendants when a peer is gone
            raise LostProcessError(
                f"Process {self.rank} of {self.size} lost another one while {what}: it ended, or did not come in "
                f"{TIMEOUT.seconds // 60} minutes. Its own message stands above."
            ) from error


def launched() -> bool:
    """Whether torchrun (or a launcher that sets the same variables) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[tuple[Processes, str]]:
    """Join the other processes that torchrun started, where it did; yields this one and the device it is to use.

    Raises:
        InputError: fewer GPUs than processes on this machine, or variables of torchrun that are incomplete.
        LostProcessError: the others did not come.
    """
    if not launched():
        yield Processes(), device
        return
    try:
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    except KeyError as error:
        raise InputError(
            f"WORLD_SIZE is set, but {error} is not: start the processes with torchrun --nproc-per-node N -m sqcli …"
        ) from error
    if device == "all":
        raise InputError(f"--device all: each of {size} processes takes one GPU. Leave it out, or start one process.")
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise InputError(
                f"Process {local} on this machine has no GPU: there are {torch.cuda.device_count()}. Start at most that many, "
                "or use --device cpu."
            )
        if device.startswith("cuda:"):
            raise InputError(
                f"--device {device}: each of {size} processes takes the GPU of its own number. Leave it out."
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    own = Processes(rank, size)
    with own._together("meeting at the start"):
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        distributed.init_process_group(backend, timeout=TIMEOUT, rank=rank, world_size=size)
        own.control = distributed.new_group(backend="gloo", timeout=TIMEOUT)
    try:
        yield own, device
    finally:
        if distributed.is_initialized():
            with contextlib.suppress(RuntimeError):
                distributed.destroy_process_group()
