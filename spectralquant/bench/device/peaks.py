"""Ceilings measured on this device: a large copy, reads and writes of as much, a large matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.bench.device.timing import graph_time

COPY_BYTES = 1 << 32
WARM_S = 0.5
MATRIX = 8192
ROW = 16384


@dataclass(frozen=True)
class Peaks:
    """TB/s of a copy (bytes read plus bytes written), of reads alone and of writes alone; memory turns between the two, so
    a copy is the slowest. matmul: bfloat16 TFLOP/s on random data. cache: bytes of L2. processors: multiprocessors."""

    copy_tb_per_s: float
    matmul_tflops: float
    cache: int
    processors: int
    read_tb_per_s: float
    write_tb_per_s: float

    @property
    def memory_tb_per_s(self) -> float:
        """The fastest that this memory was seen to move bytes, whatever the mix of reads and writes."""
        return max(self.copy_tb_per_s, self.read_tb_per_s, self.write_tb_per_s)


def measure_peaks(device: torch.device) -> Peaks:
    """Copy, read and write four GiB, multiply two 8192² matrices, after half a second of work: an idle device has low clocks."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))
    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM_S:
        a @ b
        torch.cuda.synchronize(device)
    source = torch.randint(0, 256, (COPY_BYTES,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = graph_time([lambda: target.copy_(source)], replays=9).median
    read = min(graph_time([call], replays=9).median for call in reads(source))
    write = graph_time([target.zero_], replays=9).median
    product = graph_time([lambda: a @ b], replays=9).median
    properties = torch.cuda.get_device_properties(device)
    rates = 2 * COPY_BYTES / copy / 1e6, 2 * MATRIX**3 / product / 1e6
    single = COPY_BYTES / read / 1e6, COPY_BYTES / write / 1e6
    return Peaks(*rates, properties.L2_cache_size, properties.multi_processor_count, *single)


def reads(data: Tensor) -> list[Callable[[], object]]:
    """Calls that read bytes `[n]` once and write next to nothing: a sum, a greatest number, the sums of rows.

    Which is fastest differs between devices and versions; none is faster than the memory.
    """
    numbers = data.view(torch.float32)
    return [numbers.sum, data.view(torch.int32).amax, lambda: numbers.view(-1, ROW).sum(1)]
