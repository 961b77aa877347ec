"""`smoke`: does the codec still do what it did? A short calibration, held-out quality, real caches, packets.

Every figure is taken from outside where it can be: bytes from the lengths of what a cache holds, not from what it reports;
KL by feeding a cache block by block and comparing with a cache that compresses nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import TIERS, CalibrationSettings
from spectralquant.errors import SpectralQuantError
from spectralquant.evaluation.measure import measure
from spectralquant.geometry import BLOCK
from spectralquant.methods.coding.spectral import SpectralFixed, fixed_codec, tier_method
from spectralquant.models.forward import with_cache
from spectralquant.models.identity import weights_sha256
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.checks import MetricRow
from spectralquant.results.files import results_file
from spectralquant.results.kept import kept_rows
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.tokens import TokenText, tokens_sha256

Progress = Callable[[str, int, int], None]
TOKENS = 20_000


@dataclass(frozen=True)
class SmokeSettings:
    """Sizes: enough to see faults, too small to quote."""

    steps: int = 8
    window: int = 512
    scored: int = 768
    span: str = "layer"


def smoke_suite(
    loaded: LoadedModel,
    text: TokenText,
    text_name: str,
    settings: SmokeSettings | None = None,
    progress: Progress = lambda stage, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> Results:
    """A results file with one row a metric; `kept` keeps finished parts."""
    settings = settings or SmokeSettings()
    calibration = CalibrationSettings(
        steps=settings.steps,
        window=settings.window,
        span=settings.span,
        tiers=TIERS,
        held_out_windows=1,
        held_out_window=settings.window,
    )
    profiles: list[CalibrationProfile] = []

    def calibrate() -> list[MetricRow]:
        profiles.append(_calibrated(loaded, text, calibration, text_name, progress, kept))
        return []

    ids = text.windows(settings.scored)[-1]
    rows = _working("calibration", calibrate)
    for profile in profiles:
        rows += _measured(loaded, profile, ids, progress, kept)
    header = smoke_suite_header(loaded, text, text_name, settings)
    header.provenance |= kept.facts()
    return header.updated(rows=rows)


def smoke_suite_header(
    loaded: LoadedModel, text: TokenText, text_name: str, settings: SmokeSettings | None = None
) -> Results:
    """The results file without rows: all that decides whether results can be compared, known before anything is measured."""
    settings = settings or SmokeSettings()
    facts = provenance(
        **device_facts(loaded.device),
        model=loaded.name,
        weights_sha256=weights_sha256(loaded.model),
        text=text_name,
        data_sha256=tokens_sha256(text.windows(settings.scored)[-1]),
        dtype=str(loaded.model.dtype),
        seed=0,
    )
    return results_file("gate", [], facts, suite="smoke", settings=vars(settings))


def _calibrated(
    loaded: LoadedModel,
    text: TokenText,
    settings: CalibrationSettings,
    text_name: str,
    progress: Progress,
    kept: Kept,
) -> CalibrationProfile:
    """The suite's profile: made, or read where an interrupted run has made it."""
    out = kept.path("profile")
    if out is not None and out.with_suffix(".json").is_file():
        return CalibrationProfile.load(out)
    named = {"text_name": text_name, "out": out, "resume": kept.resume, "progress": progress}
    profile = calibrate_model(loaded, text, settings, **named)
    if out is None:
        profile.seal()
    return profile


def _measured(
    loaded: LoadedModel, profile: CalibrationProfile, ids: Tensor, progress: Progress, kept: Kept
) -> list[MetricRow]:
    exact = _exact_logits(loaded, ids)
    rows: list[MetricRow] = []
    for tier in TIERS:
        progress(f"harness and cache, {tier}", 0, 1)
        parts = {
            f"harness/{tier}": functools.partial(_harness_rows, loaded, profile, tier, ids),
            f"cache/{tier}": functools.partial(_cache_rows, loaded, profile, tier, ids, exact),
        }
        for name, measured in parts.items():
            rows += kept_rows(kept, name, MetricRow, functools.partial(_working, name, measured))
    return rows + _working("packet", lambda: _packet_rows(loaded, profile, ids))


def _row(name: str, value: float) -> MetricRow:
    return MetricRow(metric=f"smoke/{name}", value=float(value))


def _working(name: str, measured: Callable[[], list[MetricRow]]) -> list[MetricRow]:
    """The rows, led by one that says whether they could be measured; an error of ours is a finding, not a wrong input."""
    try:
        return [_row(f"{name}/works", 1), *measured()]
    except (SpectralQuantError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return [MetricRow(metric=f"smoke/{name}/works", value=0.0, error=f"{type(error).__name__}: {error}"[:300])]


def _harness_rows(loaded: LoadedModel, profile: CalibrationProfile, tier: str, ids: Tensor) -> list[MetricRow]:
    """Rate and quality of a tier by the streaming harness, which also refuses a method that changes nothing."""
    if tier == "cold":
        method = tier_method(profile.tier("cold"), loaded)
    else:
        method = SpectralFixed(fixed_codec(tier == "hot")(profile.tier(tier), loaded.geometry, loaded.device))
    row = measure(loaded.model, loaded.geometry, ids[None], [method])[0].row(loaded.geometry, loaded.name, len(ids))
    fields = ("payload_ratio", "whole_cache_ratio", "kl_nats", "top1", "coded_tokens")
    return [_row(f"harness/{tier}/{field}", row[field]) for field in fields]


@torch.no_grad()
def _exact_logits(loaded: LoadedModel, ids: Tensor) -> Tensor:
    """Log-probabilities `[T, V]` of a forward pass without any cache of ours."""
    cache = DynamicCache(config=loaded.model.config)
    return _fed(loaded, cache, ids)


@torch.no_grad()
def _fed(loaded: LoadedModel, cache: Any, ids: Tensor) -> Tensor:
    parts = []
    for start in range(0, len(ids), BLOCK):
        part = ids[None, start : start + BLOCK].to(loaded.device)
        parts.append(loaded.model(input_ids=part, **with_cache(loaded.model, cache)).logits[0].float().log_softmax(-1))
    return torch.cat(parts)


def _cache_rows(
    loaded: LoadedModel, profile: CalibrationProfile, tier: str, ids: Tensor, exact: Tensor
) -> list[MetricRow]:
    """A real cache: what it does to the model, and what it holds, counted from the bytes of its blocks."""
    cache = SpectralCache(loaded.model, profile, tier=tier, background=False)
    from_cache = _fed(loaded, cache, ids)
    stats = cache.stats()
    blocks = [block for row in cache.state.sequences for block in row]
    counted = sum(len(cache.tiers[b.tier].to_bytes(b)) for b in blocks)
    coded = sum(b.tokens for b in blocks if b.tier == tier)
    if not coded:
        raise SpectralQuantError(f"a cache of {len(ids)} tokens coded none of them into its {tier} tier")
    rows = [
        _row(f"cache/{tier}/kl_nats", float((exact.exp() * (exact - from_cache)).sum() / len(ids))),
        _row(f"cache/{tier}/coded_tokens", coded),
        _row(f"cache/{tier}/resident_bytes", stats.resident_bytes),
    ]
    real = sum(b.tokens for b in blocks) * loaded.geometry.fp16_bytes_per_token / max(1, counted)
    reported = stats.payload_ratio or 0.0
    rows.append(_row(f"cache/{tier}/reported_over_counted", reported / real if real else 0.0))
    restored, plain = _last_layer(loaded, cache, ids)
    rows.append(_row(f"cache/{tier}/relative_error", float((restored - plain).norm() / plain.norm())))
    return rows


@torch.no_grad()
def _last_layer(loaded: LoadedModel, cache: SpectralCache, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the last layer as the cache gives them back, and as the model made them."""
    plain = DynamicCache(config=loaded.model.config)
    _fed(loaded, plain, ids)
    restored = torch.stack([x.float() for x in cache.view(loaded.geometry.layers - 1, 0).dense()])
    original = torch.stack([plain.layers[-1].keys.float(), plain.layers[-1].values.float()])
    return restored, original


def _packet_rows(loaded: LoadedModel, profile: CalibrationProfile, ids: Tensor) -> list[MetricRow]:
    """A packet of the same tokens twice, and what comes back from it."""
    data = []
    for _ in range(2):
        cache = SpectralCache(loaded.model, profile, tier="cold", background=False)
        _fed(loaded, cache, ids)
        packets = cache.pack()
        data.append(bytes(packets[0].data))
    back = SpectralCache.unpack(loaded.model, profile, packets)
    again = bytes(back.pack()[0].data)
    return [
        _row("packet/deterministic", data[0] == data[1]),
        _row("packet/round_trip", again == data[0] and back.get_seq_length() == len(ids)),
        _row("packet/resident_bytes", len(data[0])),
    ]
