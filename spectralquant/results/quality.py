"""Rows about rate and quality: compare, calibrate and the studies that measure both."""

from __future__ import annotations

from spectralquant.results.base import Figure, Options, Row


class TaskScore(Row):
    """One task at one context length: share of trials answered right, and what the uncompressed model reaches."""

    context: int
    trials: int
    score: Figure
    uncompressed: Figure


class MethodRow(Row):
    """One method with one budget on windows of one length (method.md, section 6).

    Ratios: fp16 bytes over those held. Perplexities and KL (nats a token) over `n_tokens` scored tokens; intervals are 95 %.
    encode_s, decode_s: see `time_unit`. needle: share of trials answered right. scores: means of `evaluation.scores`.
    mode: the protocol, streaming (also where it is not said) or prompt, with the tokens that were compressed once.
    tasks: see `TaskScore`, by the task's name. failed: why there are no figures. tier, text, label: which tier, text or command-line spelling the row is of.
    """

    tier: str | None = None
    method: str | None = None
    options: Options = {}
    model: str | None = None
    context: int | None = None
    mode: str | None = None
    prompt_tokens: int | None = None
    n_tokens: int | None = None
    n_windows: int | None = None
    payload_ratio: Figure = None
    whole_cache_ratio: Figure = None
    resident_ratio: Figure = None
    resident_bytes: int | None = None
    base_ppl: Figure = None
    unigram_ppl: Figure = None
    suspect_model: bool | None = None
    delta_ppl: Figure = None
    delta_ppl_ci95: list[Figure] = []
    kl_nats: Figure = None
    kl_nats_ci95: list[Figure] = []
    top1: Figure = None
    scores: dict[str, Figure] = {}
    coded_tokens: int | None = None
    coded_bytes: int | None = None
    fp16_bytes: int | None = None
    encode_s: Figure = None
    decode_s: Figure = None
    time_unit: str | None = None
    label: str | None = None
    text: str | None = None
    needle: Figure = None
    needle_uncompressed: Figure = None
    needle_trials: int | None = None
    needle_context: int | None = None
    tasks: dict[str, TaskScore] = {}
    index_share_of_fp16: Figure = None
    codes_share_of_fp16: Figure = None
    failed: str | None = None


class ComparedRow(MethodRow):
    """A row of `sq compare`: always of a method."""

    method: str


class NeedleRow(Row):
    """Retrieval of one method at one context length."""

    method: str
    options: Options = {}
    context: int
    needle_trials: int
    needle: Figure
    needle_uncompressed: Figure


class MatchedRow(Row):
    """The payload ratio of a method at one KL; bound: interpolated, at least, or never (then there is no ratio)."""

    context: int
    mode: str | None = None
    method: str
    kl_nats: float
    payload_ratio: Figure
    whole_cache_ratio: Figure = None
    bound: str


class TextCostRow(Row):
    """What a profile's cold tier takes on a text: real bytes of exact keys and values; the KL is predicted from the error.

    error: of a token, in squared base steps, weighted by importance. outside: the share of the error before any second stage
    that lies outside of the profile's basis. error_at_home: on held-out text of the calibration's kind. promised_kl: what the profile
    was calibrated to keep, and kept whether `predicted_kl` is at most a quarter above it; None where it promises nothing.
    ways: how many blocks took which way.
    """

    text: str
    n_tokens: int
    coded_tokens: int
    coded_bytes: int
    payload_ratio: Figure
    error: Figure
    outside: Figure = None
    error_at_home: Figure = None
    predicted_kl: Figure = None
    promised_kl: Figure = None
    kept: bool | None = None
    ways: dict[str, int] = {}


class ProtocolFacts(Row):
    """What a comparison measured; quotable: may somebody else cite it? Where not, the provenance says why."""

    name: str
    needle_context: int
    needle_trials: int
    quotable: bool
    tasks: list[str] = []
    task_contexts: list[int] = []
    task_trials: int = 0


class LayerRow(Row):
    """Mean rank and bits a scalar of one layer's heads."""

    layer: int
    key_rank: Figure
    value_rank: Figure
    key_bits: Figure
    value_bits: Figure


class HeadRow(Row):
    """One head's keys or values in a calibrated profile; other_…: the same head of a second profile."""

    layer: int
    head: int
    kind: str
    rank: int
    bits: Figure
    entropy_nats: Figure
    captured_energy: Figure
    spectrum: list[Figure] | None = None
    other_rank: int | None = None
    other_bits: Figure = None
