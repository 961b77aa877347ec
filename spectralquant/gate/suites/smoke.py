"""`smoke`: does the codec still do what it did? A short calibration, held-out quality, real caches, packets.

Every figure is taken from outside where it can be: bytes from the lengths of what a cache holds, not from what it reports;
KL by feeding a cache block by block and comparing with a cache that compresses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.calibration.options import TIERS, CalibrationSettings
from spectralquant.calibration.run import calibrate_model
from spectralquant.calibration.solve import cold_method
from spectralquant.codec.block import BLOCK
from spectralquant.codec.fixed import FixedRateCodec
from spectralquant.evaluation.measure import measure
from spectralquant.methods.spectral import SpectralFixed
from spectralquant.profile import CalibrationProfile
from spectralquant.provenance import device_facts, provenance
from spectralquant.results import results_file
from spectralquant.sources.models import LoadedModel, weights_sha256
from spectralquant.sources.tokens import TokenText, tokens_sha256

Progress = Callable[[str, int, int], None]
Row = dict[str, Any]
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
) -> dict[str, Any]:
    """A results file with one row a metric."""
    settings = settings or SmokeSettings()
    calibration = CalibrationSettings(
        steps=settings.steps,
        window=settings.window,
        span=settings.span,
        tiers=TIERS,
        held_out_windows=1,
        held_out_window=settings.window,
    )
    profile = calibrate_model(loaded, text, calibration, text_name=text_name, progress=progress)
    profile.seal()
    ids = text.windows(settings.scored)[-1]
    rows = _harness_rows(loaded, profile, ids, progress)
    exact = _exact_logits(loaded, ids)
    for tier in TIERS:
        progress(f"cache, {tier}", 0, 1)
        rows += _cache_rows(loaded, profile, tier, ids, exact)
    rows += _packet_rows(loaded, profile, ids)
    facts = provenance(
        **device_facts(loaded.device),
        model=loaded.name,
        weights_sha256=weights_sha256(loaded.model),
        text=text_name,
        data_sha256=tokens_sha256(ids),
        dtype=str(loaded.model.dtype),
        seed=0,
    )
    return results_file("gate", rows, facts, suite="smoke", settings=vars(settings))


def _row(name: str, value: float) -> Row:
    return {"metric": f"smoke/{name}", "value": float(value)}


def _harness_rows(loaded: LoadedModel, profile: CalibrationProfile, ids: Tensor, progress: Progress) -> list[Row]:
    """Rate and quality of every tier by the streaming harness, which also refuses a method that changes nothing."""
    methods = [cold_method(profile.tier("cold"), loaded)]
    for tier in ("warm", "hot"):
        codec = FixedRateCodec(profile.tier(tier), loaded.geometry, loaded.device, rotated=tier == "hot")
        methods.append(SpectralFixed(codec))
    rows = []
    found = measure(loaded.model, loaded.geometry, ids[None], methods, lambda d, t: progress("harness", d, t))
    for tier, measured in zip(("cold", "warm", "hot"), found, strict=True):
        row = measured.row(loaded.geometry, loaded.name, len(ids))
        for field in ("payload_ratio", "whole_cache_ratio", "kl_nats", "top1", "coded_tokens"):
            rows.append(_row(f"harness/{tier}/{field}", row[field]))
    return rows


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
        parts.append(loaded.model(input_ids=part, past_key_values=cache).logits[0].float().log_softmax(-1))
    return torch.cat(parts)


def _cache_rows(loaded: LoadedModel, profile: CalibrationProfile, tier: str, ids: Tensor, exact: Tensor) -> list[Row]:
    """A real cache: what it does to the model, and what it holds, counted from the bytes of its blocks."""
    cache = SpectralCache(loaded.model, profile, tier=tier, background=False)
    mine = _fed(loaded, cache, ids)
    stats = cache.stats()
    blocks = [block for row in cache.state.rows for block in row]
    counted = sum(len(cache.tiers[b.tier].to_bytes(b)) for b in blocks)
    coded = sum(b.tokens for b in blocks if b.tier == tier)
    rows = [
        _row(f"cache/{tier}/kl_nats", float((exact.exp() * (exact - mine)).sum() / len(ids))),
        _row(f"cache/{tier}/coded_tokens", coded),
        _row(f"cache/{tier}/resident_bytes", stats.resident_bytes),
    ]
    real = sum(b.tokens for b in blocks) * loaded.geometry.fp16_bytes_per_token / max(1, counted)
    reported = stats.payload_ratio or 0.0
    rows.append(_row(f"cache/{tier}/reported_over_counted", reported / real if real else 0.0))
    held, plain = _held(loaded, cache, ids)
    rows.append(_row(f"cache/{tier}/relative_error", float((held - plain).norm() / plain.norm())))
    return rows


@torch.no_grad()
def _held(loaded: LoadedModel, cache: SpectralCache, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the last layer as the cache gives them back, and as the model made them."""
    plain = DynamicCache(config=loaded.model.config)
    _fed(loaded, plain, ids)
    found = torch.stack([x.float() for x in cache.view(loaded.geometry.layers - 1).dense()])
    made = torch.stack([plain.layers[-1].keys.float(), plain.layers[-1].values.float()])
    return found, made


def _packet_rows(loaded: LoadedModel, profile: CalibrationProfile, ids: Tensor) -> list[Row]:
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
