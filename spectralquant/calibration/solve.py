"""Solve a tier for its target, and measure what it costs on held-out text.

The first half of the held-out windows decides (targets in dppl and kl, which centroids to use), the second half is
reported, so a reported figure was never searched on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spectralquant.calibration.cold.fit import ColdFitter
from spectralquant.calibration.fixed.fit import FixedFitter
from spectralquant.calibration.quality import MeasureTiers, Quality
from spectralquant.calibration.split import SplitColdFitter, SplitFixedFitter, parts_of, replaced
from spectralquant.calibration.targets import Target
from spectralquant.errors import InputError
from spectralquant.geometry import CacheGeometry
from spectralquant.models.load import LoadedModel
from spectralquant.profile.schema import TierSummary
from spectralquant.profile.tensors import ColdTier, FixedTier, SplitTier

Progress = Callable[[str, int, int], None]
AnyTier = ColdTier | FixedTier | SplitTier
MAX_TRIALS = 7
TOLERANCE = 0.04
CENTROID_TOKENS = 640
UNDER_BOUND = 0.65


@dataclass(frozen=True)
class Trials:
    """Measures tiers of a model on windows of held-out text `[N, T]`. search: the first half, report: the second."""

    loaded: LoadedModel
    held_out: Tensor
    measure: MeasureTiers
    progress: Progress

    @property
    def search(self) -> Tensor:
        return self.held_out.chunk(2)[0]

    @property
    def report(self) -> Tensor:
        return self.held_out.chunk(2)[1]

    def quality(self, tier: AnyTier, windows: Tensor, stage: str, *, hot: bool = False) -> Quality:
        """One tier's quality. hot: it is the hot tier."""
        told = functools.partial(self.progress, stage)
        return self.measure(self.loaded, [tier], windows, told, hot=hot)[0]

    def reported(self, tier: AnyTier, stage: str, *, hot: bool = False) -> dict[str, Any]:
        """A result row on what was not searched on, without times, which would differ between equal runs."""
        quality = self.quality(tier, self.report, stage, hot=hot)
        row = quality.row(self.loaded.geometry, self.loaded.name, self.report.shape[1])
        return {k: v for k, v in row.items() if k not in ("encode_s", "decode_s", "time_unit")}


def solve_cold(
    fitter: ColdFitter | SplitColdFitter, trials: Trials, target: Target
) -> tuple[ColdTier | SplitTier, TierSummary]:
    """Find the step for the target, choose centroids by held-out KL, measure the result."""

    def quality_at(ratio: float) -> Quality:
        tier = fitter.fit(fitter.step_for_ratio(ratio))[0]
        return trials.quality(tier, trials.search, f"solving for {target}")

    # other text costs more than what is held out; what is like it should need no second stage
    solved = replace(target, value=UNDER_BOUND * target.value) if target.quantity == "error" else target
    ratio, searched = (16 / target.bits, None) if target.bits else _ratio_for_quality(quality_at, solved, 30.0)
    trials.progress("step for the target", 0, 1)
    tier, report = fitter.fit(fitter.step_for_ratio(ratio))
    if target.bits and report.predicted_ratio < 0.8 * ratio:
        raise InputError(
            f"--target {target}: this model reaches at most {report.predicted_ratio:.1f}:1, because token ids and block "
            f"headers alone take {report.overhead_bytes:.1f} bytes of a token's "
            f"{trials.loaded.geometry.fp16_bytes_per_token}. Ask for less, or use --predict none."
        )
    tier, centroids = choose_centroids(tier, trials)
    summary = TierSummary(
        target=str(target),
        step=report.step,
        predicted_ratio=report.predicted_ratio,
        alive_key=report.alive_key,
        alive_value=report.alive_value,
        captured_energy_key=report.captured_energy[0],
        captured_energy_value=report.captured_energy[1],
        importance_r2_key=report.importance_r2[0],
        importance_r2_value=report.importance_r2[1],
        centroids=centroids,
        searched=searched,
        measured=trials.reported(tier, "held-out measurement"),
    )
    return tier, summary


def solve_fixed(
    fitter: FixedFitter | SplitFixedFitter, name: str, trials: Trials, target: Target
) -> tuple[FixedTier | SplitTier, TierSummary]:
    """Find the bits for the target and measure the result."""
    hot = name == "hot"

    def quality_at(ratio: float) -> Quality:
        return trials.quality(fitter.fit(16 / ratio), trials.search, f"solving for {target}", hot=hot)

    bits, searched = target.bits, None
    if bits is None:
        ratio, searched = _ratio_for_quality(quality_at, target, 6.0)
        bits = 16 / ratio
    trials.progress(f"{name} tier: bits and codebooks", 0, 1)
    tier = fitter.fit(bits)
    parts = parts_of(tier)
    width = sum(len(part.key.mean) for part in parts)
    total_bits = int(sum(part.key_bits.long().sum() + part.value_bits.long().sum() for part in parts))
    if not total_bits:
        raise InputError(
            f"--target {target}: {bits:g} bits for each of a token's {2 * width:,} scalars are too few for a single component "
            f"of the {name} tier. Ask for more bits (a lower ratio), or use the cold tier."
        )
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
        without_bits=without_bits(tier, trials.loaded.geometry),
        searched=searched,
        measured=trials.reported(tier, f"{name} tier: held-out measurement", hot=hot),
    )
    return tier, summary


def without_bits(tier: FixedTier | SplitTier, geometry: CacheGeometry) -> list[str]:
    """Layers (or heads) whose keys or values got no bits: they read as their mean."""
    places = []
    for i, part in enumerate(parts_of(tier)):
        layers = tier.layers[i] if isinstance(tier, SplitTier) else range(geometry.layers)
        for kind in ("key", "value"):
            ranks = getattr(part, kind).ranks
            heads = len(ranks) // len(layers)
            for group in torch.nonzero(ranks == 0).flatten().tolist():
                place, head = divmod(group, heads)
                places.append(f"{kind}s of layer {layers[place]}" + (f" head {head}" if heads > 1 else ""))
    return places


def _ratio_for_quality(trial: Callable[[float], Quality], target: Target, start: float) -> tuple[float, float]:
    """The largest ratio whose quality loss on held-out text stays under the target, and that loss.

    Bisection in log ratio; loss grows roughly with a power of the ratio, which only guides the first steps.

    Raises:
        InputError: even at a ratio of 2 the loss is above the target.
    """
    loss = lambda m: m.delta_ppl if target.quantity == "dppl" else m.kl  # noqa: E731
    low, high, ratio, best = 1.5, 400.0, start, None
    for _ in range(MAX_TRIALS):
        tried, lost = ratio, loss(trial(ratio))
        if lost <= target.value:
            low, best = ratio, (ratio, lost)
            if lost >= target.value * (1 - TOLERANCE):
                break
        else:
            high = ratio
        guess = ratio * (target.value / max(lost, target.value / 50)) ** 0.6
        inside = low * 1.02 < guess < high / 1.02
        ratio = guess if inside else math.sqrt(low * high)
        if high / low < 1.03:
            break
    if best is None:
        raise InputError(
            f"--target {target}: even at {tried:.1f}:1 the loss on held-out text was {lost:.4g}. "
            "Allow more, or calibrate on more text (--steps)."
        )
    return best


def choose_centroids(tier: ColdTier | SplitTier, trials: Trials) -> tuple[ColdTier | SplitTier, str]:
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
    some = trials.search[:1, :CENTROID_TOKENS]
    # one after the other: each has matrices of its own on the device
    kl = {name: trials.quality(option, some, "choosing centroids").kl for name, option in options.items()}
    name = min(kl, key=kl.__getitem__)
    return options[name], name
