"""Solve a tier for its target, and measure what it costs on held-out text.

The first half of the held-out windows decides (targets in dppl and kl, which centroids to use), the second half is
reported, so a reported figure was never searched on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spectralquant.calibration.cold.fit import ColdFitter
from spectralquant.calibration.fixed.fit import FixedFitter
from spectralquant.calibration.split import SplitColdFitter, SplitFixedFitter, parts_of, replaced
from spectralquant.calibration.targets import Target
from spectralquant.errors import InputError
from spectralquant.evaluation.measure import Measurement, measure
from spectralquant.geometry import CacheGeometry
from spectralquant.methods.base import Method
from spectralquant.methods.coding.spectral import tier_method
from spectralquant.models.load import LoadedModel
from spectralquant.profile.schema import TierSummary
from spectralquant.profile.tensors import ColdTier, FixedTier, SplitTier

Progress = Callable[[str, int, int], None]
MAX_TRIALS = 7
TOLERANCE = 0.04
CENTROID_TOKENS = 640


def solve_cold(
    fitter: ColdFitter | SplitColdFitter, loaded: LoadedModel, target: Target, held_out: Tensor, progress: Progress
) -> tuple[ColdTier | SplitTier, TierSummary]:
    """Find the step for the target, choose centroids by held-out KL, measure the result."""
    search, report = held_out.chunk(2)

    def tier_for_ratio(ratio: float) -> ColdTier:
        return fitter.fit(fitter.step_for_ratio(ratio))[0]

    def method(tier: ColdTier) -> Method:
        return cold_method(tier, loaded)

    # a bound makes most text take finer steps than the calibrated ones; tables should be right for those
    solved = replace(target, value=target.value / 2) if target.quantity == "error" else target
    ratio = (
        16 / target.bits
        if target.bits
        else _ratio_for_quality(
            lambda r: _measure_one(loaded, method(tier_for_ratio(r)), search, progress, f"solving for {target}"),
            solved,
            30.0,
        )
    )
    progress("step for the target", 0, 1)
    tier, found = fitter.fit(fitter.step_for_ratio(ratio))
    if target.bits and found.predicted_ratio < 0.8 * ratio:
        raise InputError(
            f"--target {target}: this model reaches at most {found.predicted_ratio:.1f}:1, because token ids and block "
            f"headers alone take {found.overhead_bytes:.1f} bytes of a token's "
            f"{loaded.geometry.fp16_bytes_per_token}. Ask for less, or use --predict none."
        )
    tier, centroids = choose_centroids(tier, loaded, search, progress)
    measured = _measure_one(loaded, method(tier), report, progress, "held-out measurement")
    summary = TierSummary(
        target=str(target),
        step=found.step,
        predicted_ratio=found.predicted_ratio,
        alive_key=found.alive_key,
        alive_value=found.alive_value,
        captured_energy_key=found.captured_energy[0],
        captured_energy_value=found.captured_energy[1],
        importance_r2_key=found.importance_r2[0],
        importance_r2_value=found.importance_r2[1],
        centroids=centroids,
        measured=stable_row(measured, loaded, report),
    )
    return tier, summary


def solve_fixed(
    fitter: FixedFitter | SplitFixedFitter,
    name: str,
    loaded: LoadedModel,
    target: Target,
    held_out: Tensor,
    progress: Progress,
) -> tuple[FixedTier | SplitTier, TierSummary]:
    """Find the bits for the target and measure the result."""
    search, report = held_out.chunk(2)

    def method(bits: float) -> Method:
        return tier_method(fitter.fit(bits), loaded, hot=name == "hot")

    bits = target.bits or 16 / _ratio_for_quality(
        lambda r: _measure_one(loaded, method(16 / r), search, progress, f"solving for {target}"), target, 6.0
    )
    progress(f"{name} tier: bits and codebooks", 0, 1)
    tier = fitter.fit(bits)
    parts = parts_of(tier)
    width = sum(len(part.key.mean) for part in parts)
    total_bits = int(sum(part.key_bits.long().sum() + part.value_bits.long().sum() for part in parts))
    if not total_bits:
        raise InputError(
            f"--target {target}: {bits:g} bits for each of a token's {2 * width:,} scalars are too few for a single component "
            f"of the {name} tier. Ask for more bits (a lower ratio), or use the cold tier."
        )
    measured = _measure_one(loaded, method(bits), report, progress, f"{name} tier: held-out measurement")
    kept = [
        sum(float(getattr(part, kind).variance.sum()) for part in parts) / float(fitter.weights[i].sum())
        for i, kind in enumerate(("key", "value"))
    ]
    summary = TierSummary(
        target=str(target),
        predicted_ratio=16 * 2 * width / total_bits,
        alive_key=sum(len(part.key_bits) for part in parts) / width,
        alive_value=sum(len(part.value_bits) for part in parts) / width,
        captured_energy_key=kept[0],
        captured_energy_value=kept[1],
        without_bits=without_bits(tier, loaded.geometry),
        measured=stable_row(measured, loaded, report),
    )
    return tier, summary


def without_bits(tier: FixedTier | SplitTier, geometry: CacheGeometry) -> list[str]:
    """Layers (or heads) whose keys or values got no bits: they read as their mean."""
    found = []
    for i, part in enumerate(parts_of(tier)):
        layers = tier.layers[i] if isinstance(tier, SplitTier) else range(geometry.layers)
        for kind in ("key", "value"):
            ranks = getattr(part, kind).ranks
            heads = len(ranks) // len(layers)
            for group in torch.nonzero(ranks == 0).flatten().tolist():
                place, head = divmod(group, heads)
                found.append(f"{kind}s of layer {layers[place]}" + (f" head {head}" if heads > 1 else ""))
    return found


def cold_method(
    tier: ColdTier | SplitTier, loaded: LoadedModel, exact_bits: int = 16, *, adaptive: bool = False, **options: Any
) -> Method:
    """A cold tier as a method for the harness; `options` are shown in its result rows."""
    return tier_method(tier, loaded, exact_bits, adaptive=adaptive, **options)


def _measure_one(loaded: LoadedModel, method: Method, windows: Tensor, progress: Progress, stage: str) -> Measurement:
    return measure(loaded.model, loaded.geometry, windows, [method], lambda d, t: progress(stage, d, t))[0]


def stable_row(measured: Measurement, loaded: LoadedModel, windows: Tensor) -> dict[str, Any]:
    """A result row without times, which would differ between equal runs."""
    row = measured.row(loaded.geometry, loaded.name, windows.shape[1])
    return {k: v for k, v in row.items() if k not in ("encode_s", "decode_s", "time_unit")}


def _ratio_for_quality(trial: Callable[[float], Measurement], target: Target, start: float) -> float:
    """The largest ratio whose quality loss on held-out text stays under the target.

    Bisection in log ratio; loss grows roughly with a power of the ratio, which only guides the first steps.

    Raises:
        InputError: even at a ratio of 2 the loss is above the target.
    """
    loss = lambda m: m.delta_ppl if target.quantity == "dppl" else m.kl  # noqa: E731
    low, high, ratio, best = 1.5, 400.0, start, None
    for _ in range(MAX_TRIALS):
        tried, found = ratio, loss(trial(ratio))
        if found <= target.value:
            low, best = ratio, ratio
            if found >= target.value * (1 - TOLERANCE):
                break
        else:
            high = ratio
        guess = ratio * (target.value / max(found, target.value / 50)) ** 0.6
        inside = low * 1.02 < guess < high / 1.02
        ratio = guess if inside else math.sqrt(low * high)
        if high / low < 1.03:
            break
    if best is None:
        raise InputError(
            f"--target {target}: even at {tried:.1f}:1 the loss on held-out text was {found:.4g}. "
            "Allow more, or calibrate on more text (--steps)."
        )
    return best


def choose_centroids(
    tier: ColdTier | SplitTier, loaded: LoadedModel, windows: Tensor, progress: Progress
) -> tuple[ColdTier | SplitTier, str]:
    """Use centroid reconstruction for keys and for values where held-out KL says so (method.md section 3)."""

    def without(*kinds: str) -> ColdTier | SplitTier:
        names = [f"{kind}_centroid" for kind in kinds]
        return replaced(tier, lambda part: {name: torch.ones_like(getattr(part, name)) for name in names})

    options = {
        "keys and values": tier,
        "keys": without("value"),
        "values": without("key"),
        "none": without("key", "value"),
    }
    methods = [cold_method(t, loaded) for t in options.values()]
    stage = "choosing centroids"
    found = measure(
        loaded.model, loaded.geometry, windows[:1, :CENTROID_TOKENS], methods, lambda d, t: progress(stage, d, t)
    )
    best = min(range(len(found)), key=lambda i: found[i].kl)
    name = list(options)[best]
    return options[name], name
