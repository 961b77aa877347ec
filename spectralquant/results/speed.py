"""Rows about time and memory: `sq profile` and the kernels study."""

from __future__ import annotations

from typing import Any

from spectralquant.results.base import Figure, Row


class KernelRow(Row):
    """One kernel at one context and batch: measured (time_us), predicted (predicted_us), or failed.

    time_us: median of n graph replays; time_spread: 20th and 80th percentile. peak_share: of the fastest rate
    that memory was measured at (of a copy in files whose peaks have no read_tb_per_s: reads alone are faster, and go over 1).
    error is relative to float64; a speed-up over `baseline` stands only where it is within error_limit (correct).
    """

    kernel: str
    device: str | None = None
    batch: int
    context: int
    kv_heads: int | None = None
    group: int | None = None
    head_dim: int | None = None
    time_us: Figure = None
    time_spread: list[Figure] = []
    n: int | None = None
    time_samples: list[Figure] = []
    bytes_read: int | None = None
    tb_per_s: Figure = None
    peak_share: Figure = None
    baseline: str | None = None
    baseline_time_us: Figure = None
    speedup: Figure = None
    ideal_us: Figure = None
    error: Figure = None
    error_limit: Figure = None
    correct: bool | None = None
    input_sets: int | None = None
    bytes_share_of_dense: Figure = None
    prefill_us: Figure = None
    share_of_prefill: Figure = None
    predicted: bool | None = None
    predicted_us: Figure = None
    roofline_us: Figure = None
    measured_us: Figure = None
    predicted_speedup: Figure = None
    variant: dict[str, int | str | bool] | None = None
    failed: str | None = None


class StepRow(Row):
    """Whole decode steps of a model with random weights. ideal_…: what Amdahl's law allows when attention alone is faster."""

    method: str
    batch: int
    context: int
    step_ms: Figure = None
    step_ms_spread: list[Figure] = []
    tokens_per_s: Figure = None
    predicted_ms: Figure = None
    speedup: Figure = None
    ideal_ms: Figure = None
    ideal_tokens_per_s: Figure = None
    share_of_ideal: Figure = None
    failed: str | None = None


class GenerateTimeRow(Row):
    """`model.generate` over one cache at a context and a batch. kind: decode, first_token, capacity, whole_step, first_calls.

    step_ms: median time from token to token; stall_ms: the slowest less that (of graphs alone). ttft_ms: time to first token,
    the second time. wall_s: what measuring the row took, compilation included.
    """

    kind: str
    method: str
    context: int | None = None
    batch: int | None = None
    tokens_per_s: Figure = None
    step_ms: Figure = None
    stall_ms: Figure = None
    seconds_first: Figure = None
    ttft_ms: Figure = None
    ttft_first_ms: Figure = None
    peak_memory_bytes: int | None = None
    compilation_cache: str | None = None
    seconds: Figure = None
    wall_s: Figure = None
    failed: str | None = None


class CounterRow(Row):
    """Bytes that an operator moves from and to memory: counted from shapes, and by the GPU's counters kernel by kernel; or why not."""

    operator: str
    context: int
    batch: int
    counted_bytes: int | None = None
    counter_bytes: Figure = None
    counter_share: Figure = None
    kernels: list[dict[str, str | float]] = []
    failed: str | None = None


class MemoryRow(Row):
    """Bytes a cache holds, counted from layouts; longest_context: that fits beside the weights (null: any)."""

    method: str
    batch: int
    context: int
    bytes: int
    ratio: float
    longest_context: int | None


class CrossoverRow(Row):
    """From how many tokens on a kernel beats the fastest dense one (null: at no measured context)."""

    kernel: str
    batch: int
    tokens: int | None
    bound: str


class StateVerdict(Row):
    """Whether the device's state lets times be trusted, and why."""

    conclusive: bool
    why: str


class Telemetry(Row):
    """The device before and after; null where it tells nothing."""

    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    verdict: StateVerdict
