"""Rows of caches, packets and profiles as files and objects."""

from __future__ import annotations

from typing import Any

from spectralquant.results.base import Figure, Row


class PacketRow(Row):
    """Sizes and ratios of a packet, from its real bytes; what `sq pack` and `sq unpack` did with it, in seconds."""

    tokens: int
    coded_tokens: int
    exact_tokens: int
    bytes: int
    coded_bytes: int
    exact_dtype: str
    step_scale: float
    profile_id: str
    windows: list[int | None]
    fp16_bytes: int
    payload_ratio: Figure
    whole_cache_ratio: Figure
    prefill_and_encode_s: Figure = None
    decode_s: Figure = None
    file: str | None = None
    continuation: str | None = None
    ways: dict[str, int] = {}


class TensorRow(Row):
    """One tensor of a profile."""

    tensor: str
    shape: list[int]
    dtype: str
    bytes: int


class CacheRow(Row):
    """What a cache holds and has spent: see `spectralquant.cache.report.stats.CacheStats`."""

    rows: int
    tokens: int
    fp16_bytes: int
    exact_bytes: int
    exact_tokens: int
    tiers: dict[str, dict[str, int]]
    groups: list[dict[str, int | bool | None]]
    pool_bytes: int
    pool_fragmentation: float
    working_set_bytes: int
    resident_bytes: int
    payload_ratio: Figure
    resident_ratio: Figure
    spent: dict[str, Any]
    reconstructor_failure: str | None
    over_budget: bool
    not_compressed: list[dict[str, int | str]]
    ways: dict[str, int] = {}


class GeneratedRow(CacheRow):
    """A generated text, and the cache that it came from."""

    model: str
    tier: str
    prompt_tokens: int
    new_tokens: int
    seconds: float
    text: str


class ResidentRow(Row):
    """What a cache object of one tier holds after `context` tokens, and the KL beside it."""

    tier: str
    context: int
    dtype: str
    kl_nats: Figure
    n_tokens: int
    payload_ratio: Figure
    resident_ratio: Figure
    resident_bytes: int
    fp16_bytes: int
    exact_bytes: int
    tiers: dict[str, dict[str, int]]
    pool_fragmentation: float


class CacheCostRow(Row):
    """Time per token, prefill and process memory of one tier; `none` is transformers' own cache."""

    tier: str
    time_context: int
    memory_context: int
    memory_kind: str
    peak_memory_bytes: int | None
    fp16_bytes: int | None = None
    cache_dtype: str | None = None
    steps: int | None = None
    dense_token_s: Figure = None
    token_s: Figure = None
    token_s_range: list[Figure] = []
    token_ratio: Figure = None
    token_ratio_quartiles: list[Figure] = []
    dense_prefill_s: Figure = None
    prefill_s: Figure = None
    compress_s: Figure = None
    compress_share_of_prefill: Figure = None
    prefill_ratio: Figure = None
    resident_bytes: int | None = None
    resident_ratio: Figure = None
    kernel_reads: int | None = None
    in_place_reads: int | None = None


class PacketTimesRow(Row):
    """Medians (and ranges) in seconds of prefill, prefill with pack, and unpack of one prompt."""

    context: int
    runs: int
    prefill_s: float
    prefill_s_range: list[float]
    pack_s: float
    pack_s_range: list[float]
    unpack_s: float
    unpack_s_range: list[float]
    bytes: int
    coded_tokens: int
    coded_bytes: int
    payload_ratio: float
    whole_cache_ratio: float
    unpack_over_prefill: float
