"""Ceilings measured on this device: a large copy, a large matrix product."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from spectralquant.bench.device.timing import graph_time

COPY_BYTES = 1 << 32
WARM_S = 0.5
MATRIX = 8192


@dataclass(frozen=True)
class Peaks:
    """copy: TB/s, bytes read plus bytes written. matmul: bfloat16 TFLOP/s on random data. cache: bytes of L2. processors:
    multiprocessors."""

    copy_tb_per_s: float
    matmul_tflops: float
    cache: int
    processors: int


def measure_peaks(device: torch.device) -> Peaks:
    """Copy four GiB, multiply two 8192² matrices, after half a second of work: an idle device has low clocks."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))
    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM_S:
        a @ b
        torch.cuda.synchronize(device)
    source = torch.randint(0, 256, (COPY_BYTES,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = graph_time([lambda: target.copy_(source)], replays=9).median
    product = graph_time([lambda: a @ b], replays=9).median
    properties = torch.cuda.get_device_properties(device)
    rates = 2 * COPY_BYTES / copy / 1e6, 2 * MATRIX**3 / product / 1e6
    return Peaks(*rates, properties.L2_cache_size, properties.multi_processor_count)
