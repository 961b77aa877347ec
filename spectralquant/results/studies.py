"""Rows of studies that fit nowhere else."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from spectralquant.results.base import Figure, Row


class SpectrumRow(Row):
    """A fitted cold tier: shares of components alive, predicted ratio, R² of the importance regression."""

    target_ratio: float
    step: float
    predicted_ratio: Figure
    alive_key: float
    alive_value: float
    importance_r2_key: Figure
    importance_r2_value: Figure


class ScaleRow(Row):
    """One part of calibrating at real sizes; each part sets those fields that it measures or predicts. Times in seconds.

    Differences are relative to the largest entry, but for that of ranks; plan_error: predicted peak over the measured, less one.
    """

    part: str
    ok: bool = True
    error: str | None = None
    options: str | None = None
    model: str | None = None
    gpus: int | None = None
    layers: int | None = None
    of_layers: int | None = None
    measured: bool | None = None
    device: str | None = None
    driver: str | None = None
    cuda: str | None = None
    threads: int | None = None
    # a calibration
    process_s: Figure = None
    seconds: Figure = None
    stages_s: dict[str, float] | None = None
    capture_s: dict[str, float] | None = None
    peak_bytes: int | None = None
    stages_peak_bytes: dict[str, int] | None = None
    stages_peak_bytes_by_device: dict[str, list[int]] | None = None
    plan: dict[str, Any] | None = None
    plan_error: Figure = None
    plan_error_by_stage: dict[str, Figure] | None = None
    profile_bytes: int | None = None
    profile_bytes_by_tier: dict[str, int] | None = None
    steps: int | None = None
    window: int | None = None
    span_width: int | None = None
    solver: str | None = None
    load_s: Figure = None
    weights_on_card_bytes: int | None = None
    weights_on_host_bytes: int | None = None
    reduced_bytes: int | None = None
    reduce_s: Figure = None
    # several GPUs against one
    alone_steps: int | None = None
    compared_steps: int | None = None
    deterministic: bool | None = None
    seconds_alone: Figure = None
    seconds_shared: Figure = None
    step_s_alone: Figure = None
    step_s_shared: Figure = None
    efficiency: Figure = None
    counted: str | None = None
    step_s_alone_each: list[float] | None = None
    step_s_of_processes: list[float] | None = None
    wait_s: Figure = None
    add_up_s: Figure = None
    connect_s: Figure = None
    added_bytes: int | None = None
    largest_difference_of_sums: Figure = None
    largest_difference_of_sums_of_two_equal_runs: Figure = None
    largest_difference_of_head_spectra: Figure = None
    largest_difference_of_ranks: int | None = None
    # quality
    varied: str | None = None
    variant: str | None = None
    shrinkage: Figure = None
    base_ppl: Figure = None
    metric: str | None = None
    basis: str | None = None
    n_tokens: int | None = None
    payload_ratio: Figure = None
    kl_nats: Figure = None
    delta_ppl: Figure = None
    tier_bytes: int | None = None
    # predicted
    name: str | None = None
    predicted: bool | None = None
    parameters: float | None = None
    width: int | None = None
    weights_bytes: int | None = None
    statistics_bytes: int | None = None
    activations_bytes: int | None = None
    eigenproblem_bytes: int | None = None
    eigenproblem_width: int | None = None
    peak_bytes_beside_weights: int | None = None
    profile_bytes_at_most: int | None = None
    seconds_100_steps_one_card: Figure = None
    bases_s: Figure = None
    # where it comes from
    git_commit: str | None = None
    git_dirty: bool | None = None
    created: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    provenance: dict[str, Any] | None = None
    run: str | None = None


class SpeedRow(Row):
    """Time of one way (`what`) to code, decode or begin on one shape: median and middle three fifths of wall-clock seconds.

    gb_s: gigabytes of float16 keys and values a second. ceiling_s: the synthesis products alone.
    """

    what: str
    model: str
    context: int
    batch: int
    fp16_bytes: int
    packet_bytes: int | None = None
    seconds: float
    seconds_low: Figure = None
    seconds_high: Figure = None
    gb_s: float
    rank_keys: int | None = None
    rank_values: int | None = None
    span: int | None = None
    unique_ids: int | None = None
    streams_overhead_share: Figure = None
    stages_s: dict[str, float] | None = None
    ceiling_s: Figure = None
    working_bytes: int | None = None
    raw_blocks: int | None = None
    bytes_again: int | None = None
    coded_tokens: int | None = None
    coded_bytes: int | None = None
    token_s: Figure = None
    coder: str | None = None
    products: str | None = None
    part: str | None = None
    tokens_s: Figure = None
    wait_s: Figure = None
    run: int | None = None


class PlanRow(Row):
    """Predicted peak bytes of one stage of a calibration, and the parts they are made of."""

    stage: str
    peak_bytes: int
    parts: dict[str, int]


class DurationRow(Row):
    """Processor and wall time in seconds of one command."""

    name: str
    command: str
    exit_code: int
    cpu_s: float
    wall_s: float


class PredictionRow(Row):
    """A measured kernel time in µs, and what the fit and a bare roofline predict."""

    kernel: str
    context: int
    batch: int
    bytes_read: int
    measured_us: float
    predicted_us: float
    roofline_us: float


class TierCost(Row):
    """Bytes of a tier's tensors, and the tokens after which what it saved on caches exceeds them."""

    bytes: int
    paid_for_after_tokens: int


class DomainRow(Row):
    """The payload ratio of one profile on one text at a KL that all curves reach."""

    text: str
    profile: str
    adaptive_tables: bool
    kl_nats: float
    payload_ratio: Figure


class HeadlineRow(Row):
    """One method on one text at one KL: its payload ratio (bound, mode: see `MatchedRow`), with which profile, and that profile's bytes."""

    model: str
    text: str
    method: str
    mode: str | None = None
    profile: str | None = None
    kl_nats: float
    payload_ratio: Figure
    bound: str
    profile_bytes: int | None = None
    context: int
    n_tokens: int
    n_windows: int


class MethodSpeedRow(Row):
    """Coding a window's blocks one by one, and the time to its next token when they are all decoded first; medians in seconds.

    gb_s: gigabytes of float16 keys and values a second. prefill_s: computing the window instead. What else ran there meanwhile:
    other_bytes: memory of the device in use that is not this process's tensors; host_load: processes that ran or waited for one of
    host_cores, on the average of a minute.
    """

    model: str
    method: str
    options: dict[str, Any]
    device: str
    context: int
    blocks: int
    encode_gb_s: Figure
    decode_gb_s: Figure
    first_token_s: Figure
    prefill_s: Figure
    other_bytes: int | None = None
    host_load: float | None = None
    host_cores: int | None = None


class ShapeRow(Row):
    """One step of one model of real size: its time, memory, and what the step measured."""

    model: str
    step: str
    tier: str | None = None
    ok: bool
    error: str | None = None
    seconds: float
    peak_memory_bytes: int | None
    parameters: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    steps: int | None = None
    window: int | None = None
    stages_s: dict[str, float] | None = None
    ratios: dict[str, Figure] | None = None
    prefill_s: Figure = None
    token_s: Figure = None
    logit_distance: Figure = None
    top1: Figure = None
    payload_ratio: Figure = None
    resident_ratio: Figure = None
    coded_tokens: int | None = None
    kernel_reads: int | None = None
    reconstructor_failure: str | None = None
    new_tokens: int | None = None
    tiers: list[str] | None = None
    pack_s: Figure = None
    bytes: int | None = None


class CoderRow(Row):
    """Sizes and speed of one coder on one shape's symbols; bytes and seconds of all blocks."""

    coder: str
    model: str
    context: int
    batch: int
    symbols: int | None = None
    fp16_bytes: int | None = None
    bytes: int
    lanes: int | None = None
    streams: int | None = None
    streams_overhead_share: Figure = None
    round_trip_exact: bool | None = None
    same_bytes_as_cpu: bool | None = None
    warps: int | None = None
    first_encode_s: Figure = None
    encode_s: Figure = None
    decode_s: Figure = None
    encode_gb_s: Figure = None
    encode_gsymbols_s: Figure = None
    decode_gb_s: Figure = None
    decode_gsymbols_s: Figure = None


class ArchitectureRow(Row):
    """One architecture: right (with distances of the coded reads), refused or wrong (with the reason)."""

    name: str
    model_type: str
    what: str
    model_class: str = Field(alias="class")
    outcome: str
    seconds: float
    reason: str | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    rotary_layers: int | None = None
    rotary_pairs: str | None = None
    windows: list[int | None] | None = None
    text_changes_logits_by: Figure = None
    distances: dict[str, Figure] | None = None
