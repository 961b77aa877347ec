"""`graph_time`: microseconds of a call, from replays of a CUDA graph over rotating inputs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

REPLAYS = 25
MIN_CALLS = 12


@dataclass(frozen=True)
class Timing:
    """Median and spread (20th to 80th percentile) of n replays, in microseconds a call."""

    median: float
    low: float
    high: float
    n: int


def rotation(bytes_read: int, cache_bytes: int, most: int = 24) -> int:
    """Input sets to rotate among, so that a call does not find its inputs in the device's cache."""
    return max(1, min(most, -(-3 * cache_bytes // max(1, bytes_read))))


def graph_time(calls: Sequence[Callable[[], object]], replays: int = REPLAYS) -> Timing:
    """Time of one call. All calls (one an input set) are captured in one graph, several times over when they are few."""
    repeats = -(-MIN_CALLS // len(calls))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats):
            for call in calls:
                call()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * begin.elapsed_time(end) / (repeats * len(calls)))
    times.sort()
    return Timing(statistics.median(times), times[len(times) // 5], times[-1 - len(times) // 5], len(times))
