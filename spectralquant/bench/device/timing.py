"""`graph_time`: microseconds of a call, from replays of a CUDA graph over rotating inputs.

`triton.testing.do_bench` times one input set and empties the cache by a large write before every call, launch included;
here calls follow each other as in decoding and rotate among input sets that together do not fit into the cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

REPLAYS, LEAST_REPLAYS = 25, 7
TOTAL_US = 300_000.0
GRAPH_US = 400.0
MAX_CALLS = 24
MAX_SETS = 256


@dataclass(frozen=True)
class Timing:
    """Median and spread (20th to 80th percentile) of n replays, in microseconds a call, and the replays in order."""

    median: float
    low: float
    high: float
    n: int
    samples: tuple[float, ...] = ()


def rotation(bytes_read: int, cache_bytes: int) -> int:
    """Input sets to rotate among, so that a call does not find its inputs in the device's cache (nor most of them)."""
    return max(1, min(MAX_SETS, -(-3 * cache_bytes // max(1, bytes_read))))


def graph_time(calls: Sequence[Callable[[], object]], replays: int = REPLAYS) -> Timing:
    """Time of one call. All calls (one an input set) are captured in one graph, several times over when they are short."""
    stream = side_stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            for call in calls:
                call()
    stream.synchronize()
    once = _elapsed(_capture(calls, 1, stream))
    repeats = max(1, min(MAX_CALLS // len(calls), round(GRAPH_US / max(once, 1.0))))
    replays = max(LEAST_REPLAYS, min(replays, round(TOTAL_US / max(once, 1.0))))
    graph = _capture(calls, repeats, stream)
    samples = tuple(_elapsed(graph) / (repeats * len(calls)) for _ in range(replays))
    times = sorted(samples)
    return Timing(statistics.median(times), times[len(times) // 5], times[-1 - len(times) // 5], len(times), samples)


def side_stream() -> torch.cuda.Stream:
    """A stream to capture on, behind what was launched so far: inputs may still be in the making."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    return stream


def _capture(calls: Sequence[Callable[[], object]], repeats: int, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats):
            for call in calls:
                call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def _elapsed(graph: torch.cuda.CUDAGraph) -> float:
    """Microseconds of one replay."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return 1000 * begin.elapsed_time(end)
