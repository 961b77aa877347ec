"""Several processes that calibrate one model together: who is first, and sums that are added up in it.

`torchrun` starts them and `torch.distributed` connects them: gloo for tensors on the CPU, NCCL for those on GPUs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from spectralquant.errors import InputError, SpectralQuantError

TIMEOUT = timedelta(minutes=30)
BUCKET = 1 << 26
"""Bytes of small tensors that are added up at once: sums are thousands of tiles, and each operation has a latency."""


class LostProcessError(SpectralQuantError):
    """A process of the run ended before the others did."""


@dataclass
class Processes:
    """This process among `size` that share the work; alone without torchrun.

    control: a gloo group, which notices at once when another process is gone. group: the processes that add up, where they
    are not all that were started. seconds, bytes: spent on adding up. waited: seconds before that until the slowest process
    came. connecting: seconds that making the connections took, before the work began.
    """

    rank: int = 0
    size: int = 1
    control: Any = field(default=None, compare=False)
    group: Any = field(default=None, compare=False)
    seconds: float = field(default=0.0, compare=False)
    bytes: int = field(default=0, compare=False)
    waited: float = field(default=0.0, compare=False)
    connecting: float = field(default=0.0, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows progress."""
        return self.rank == 0

    def connect(self, device: torch.device | str) -> None:
        """Make the connections that adding up on `device` needs: NCCL makes its communicators and channels in a group's first
        operation of a kind, which takes longer than adding up itself.

        Raises:
            LostProcessError: one of the others ended.
        """
        if self.size == 1:
            return
        start = time.perf_counter()
        with self._together("connecting"):
            distributed.reduce(torch.zeros(1, device=device), dst=0, group=self.group)
            _finish()
        self.connecting += time.perf_counter() - start

    def meet(self) -> None:
        """Wait until all are here.

        Raises:
            LostProcessError: one of the others ended.
        """
        if self.size > 1:
            with self._together("waiting for the others"):
                distributed.monitored_barrier(self.control, timeout=TIMEOUT)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors of equal shapes over all processes in the first; in the others they are undefined afterwards.

        Raises:
            LostProcessError: one of the others ended.
        """
        if self.size == 1:
            return
        _finish()  # its own work is no part of waiting for others
        start = time.perf_counter()
        with self._together("adding up what the processes found"):
            distributed.monitored_barrier(self.control, timeout=TIMEOUT)
            begin = time.perf_counter()
            for bucket in _buckets(tensors):
                self._add_up_bucket(bucket)
            _finish()
        self.waited += begin - start
        self.seconds += time.perf_counter() - begin

    def _add_up_bucket(self, tensors: Sequence[Tensor]) -> None:
        whole = tensors[0] if len(tensors) == 1 else torch.cat([tensor.flatten() for tensor in tensors])
        distributed.reduce(whole, dst=0, group=self.group)
        self.bytes += _size(whole)
        if self.first and len(tensors) > 1:
            for tensor, part in zip(tensors, whole.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

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
        except torch.OutOfMemoryError:  # a trouble of this one's own
            raise
        except RuntimeError as error:  # gloo and NCCL raise it and its descendants when a peer is gone
            raise LostProcessError(
                f"Process {self.rank} of {self.size} lost another one while {what}: it ended, or did not come in "
                f"{TIMEOUT.seconds // 60} minutes. Its own message stands above."
            ) from error


def _finish() -> None:
    """Wait for what was begun on the GPU, where there is one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one device and type that are added up at once: some of at most `BUCKET` bytes together, or a larger one."""
    filling: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], int]] = {}
    for tensor in tensors:
        kind = tensor.device, tensor.dtype
        bucket, size = filling.get(kind, ([], 0))
        if bucket and size + _size(tensor) > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        filling[kind] = bucket, size + _size(tensor)
    yield from (bucket for bucket, _ in filling.values())


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
        own.connect(device if on_gpu else "cpu")
        yield own, device
    except BaseException:
        if on_gpu and distributed.is_initialized():
            with contextlib.suppress(RuntimeError):  # NCCL's farewell would wait for the others, and they may be gone
                distributed.group.WORLD.abort()
        raise
    finally:
        if distributed.is_initialized():
            with contextlib.suppress(RuntimeError):
                distributed.destroy_process_group()
