"""Rows of vLLM's tier in CPU memory, to and from the device that a codec works on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from spectralquant.streams import finish_here

log = logging.getLogger(__name__)


class HostRows:
    """Rows of bytes `[rows, bytes]` (int8) that vLLM shares with its tiers.

    With a GPU their memory is registered with its driver, in this process as vLLM does it in its workers, so that rows are
    copied at the bus's speed; and all work is on streams of its own, which the engine's never wait for.
    """

    def __init__(self, view: memoryview, device: str) -> None:
        self.device = torch.device(device)
        self._rows = torch.from_numpy(np.asarray(view)).view(torch.int8)
        self._registered = self.device.type == "cuda" and self._register()

    @property
    def bytes(self) -> int:
        """Of one row."""
        return self._rows.shape[1]

    def _register(self) -> bool:
        torch.cuda.init()
        code = torch.cuda.cudart().cudaHostRegister(self._rows.data_ptr(), self._rows.numel(), 0).value
        if code:
            log.warning("vLLM's tier in CPU memory was not registered with the GPU (code %d): copies are slower", code)
        return code == 0

    def stream(self) -> torch.cuda.Stream | None:
        """For one thread's work; None on a CPU."""
        return torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @contextlib.contextmanager
    def working(self, stream: torch.cuda.Stream | None) -> Iterator[None]:
        """Work on `stream`; at the end everything is done, also where it failed: vLLM uses the rows again."""
        if stream is None:
            yield
            return
        with torch.cuda.stream(stream):
            try:
                yield
            finally:
                stream.synchronize()

    def finish_work(self) -> None:
        """Wait for what the current stream was given."""
        finish_here(self.device)

    def read(self, rows: Sequence[int], count: int) -> Tensor:
        """The first `count` bytes of some rows `[n, count]`, on the device."""
        out = torch.empty(len(rows), count, dtype=torch.int8, device=self.device)
        for to, row in zip(out, rows, strict=True):
            to.copy_(self._rows[row, :count], non_blocking=True)
        return out

    def write(self, rows: Sequence[int], content: Tensor) -> None:
        """Put `content: [n, count]` at the beginning of some rows."""
        for row, one in zip(rows, content, strict=True):
            self._rows[row, : content.shape[1]].copy_(one, non_blocking=True)

    def close(self) -> None:
        """Let go of the memory, which vLLM closes."""
        if self._registered:
            torch.cuda.cudart().cudaHostUnregister(self._rows.data_ptr())
            self._registered = False
        self._rows = torch.empty(0, 0, dtype=torch.int8)
