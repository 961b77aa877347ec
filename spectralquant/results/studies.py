"""Rows of studies that fit nowhere else."""

from __future__ import annotations

from typing import ClassVar

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
    """One part of calibrating at real sizes; what it measured depends on the part, so that other fields may stand beside."""

    open_fields: ClassVar[bool] = True

    part: str
    ok: bool = True
    error: str | None = None


class SpeedRow(Row):
    """Time of one way to code or decode on one shape; which fields stand beside depends on the way."""

    open_fields: ClassVar[bool] = True


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


class BlockRow(Row):
    """One block of the adaptive codec's log."""

    start: int
    drift: float
    drift_after: float
    heads_raised: int
    step: float
    generation: int
    base_bytes: int
    nbytes: int


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
