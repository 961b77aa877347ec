"""Rows of `sq serve-check` and of the soak."""

from __future__ import annotations

from spectralquant.results.base import Figure, Row


class ServingRow(Row):
    """One way to serve the same prompts. Bytes are those on disk; times are medians of seconds to the first token.

    way: `recompute`, `lossless`, `spectral`, or a tier of vLLM's own (`vllm-cpu-memory`, `vllm-files`). hit_share: of lookups
    in the store. kl_nats: mean KL of log-probabilities from recomputing. over_recompute: its time over that of recomputing.
    bytes_ratio: bytes of stored chunks as the engine holds them by their bytes on disk. trace_*: a trace of requests over
    shared prefixes, with `trace_budget` bytes of disk. long_samples_s: in their order, so that the first is that of a process
    that has restored nothing of this length yet. long_stages_s: by length, means of seconds from a request's first lookup until
    its last chunk was read, decoded, copied, and taken by the engine. pages: how many the engine has in its memory.

    decode_tokens_per_s: by how many sequences decode together, with nothing to store; decode_storing_tokens_per_s: while their prompts,
    which were just computed, are stored. decode_samples_tokens_per_s: of each round, by `stored` and
    `storing` (or by the number of sequences). decode_step_s: median of a step; decode_connector_s: mean seconds of a step that are spent in vLLM's connector.
    """

    way: str
    codec: str | None = None
    prompts: int | None = None
    prefix_tokens: int | None = None
    hit_share: Figure = None
    cached_tokens_share: Figure = None
    same_text: Figure = None
    top1: Figure = None
    kl_nats: Figure = None
    positions: int | None = None
    bytes_ratio: Figure = None
    stored_bytes: int | None = None
    chunk_bytes: int | None = None
    first_token_s: Figure = None
    first_token_samples_s: list[float] = []
    over_recompute: Figure = None
    long_first_token_s: dict[str, float] = {}
    long_samples_s: dict[str, list[float]] = {}
    long_over_recompute: dict[str, float] = {}
    long_stages_s: dict[str, dict[str, float]] = {}
    encode_s: Figure = None
    decode_s: Figure = None
    decode_tokens_per_s: dict[str, float] = {}
    decode_storing_tokens_per_s: dict[str, float] = {}
    decode_samples_tokens_per_s: dict[str, list[float]] = {}
    decode_step_s: dict[str, float] = {}
    decode_connector_s: dict[str, float] = {}
    pages: int | None = None
    trace_requests: int | None = None
    trace_prefixes: int | None = None
    trace_budget: int | None = None
    trace_hit_share: Figure = None
    trace_first_token_s: Figure = None
    engine_start_s: Figure = None
    note: str | None = None


class SoakRow(Row):
    """A server under load, seen once in a while. Counts since the beginning; hits: prefixes that were not computed.

    plain_hits: what a plain list of as many prefixes, the one used least recently dropped, would have had.
    """

    seconds: float
    requests: int
    hits: int
    plain_hits: int
    memory_bytes: int
    stored_bytes: int
