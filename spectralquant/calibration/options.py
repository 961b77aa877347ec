"""Options of a calibration run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from spectralquant.calibration.targets import Target, parse_target
from spectralquant.errors import InputError, did_you_mean
from spectralquant.geometry import BLOCK, CacheGeometry

METRICS = ("fisher", "attention", "energy")
TIERS = ("cold", "warm", "hot")
PURPOSES = ("caches", "serving")
DEFAULT_TARGETS = {"cold": "ratio=33", "warm": "ratio=8", "hot": "ratio=4"}
HOT_BITS = ("free", "even")
BASES = ("auto", "dense", "two-level")
MAX_SPAN_WIDTH = {"dense": 8192, "two-level": 32768}
SAMPLE_BYTES = 10 << 30


@dataclass(frozen=True)
class CalibrationSettings:
    """What to calibrate. One step is one window of `window` tokens, forward and backward.

    span: head, layer, a number of layers, all, or auto (as many layers as stay under 8,192 coordinates with a dense basis
    and under 32,768 with one of two levels; method.md section 2). basis: dense, two-level, or auto (dense where all layers
    together have no more than 8,192 coordinates, else two-level). block: size of the blocks a cache will compress;
    gradients are taken only through reads from at least two blocks later. predict: tokens or none. profile_budget:
    bytes of the cold tier's tensors and head spectra, at most; then `span` is the largest that may be chosen. recompute:
    run layers again in the backward pass instead of keeping what they computed. sample_windows, sample_bytes: windows
    of the second pass and host memory for them, at most. purpose: caches (of transformers) or serving (the tier of an engine,
    which restores whole prefixes and knows neither token ids nor attention; all layers are coded as one, and the hot tier's take
    equally many bits each, as an engine's pages are equally long). shrinkage: share by which what the text says of layers together
    is lowered against what it says of each (see `basis.spectrum.shrunk`). hot_bits: of the hot
    tier, free (least loss for its bytes) or even (what kernels read fastest; see `fixed.even`).
    """

    steps: int = 100
    window: int = 512
    metric: str = "fisher"
    span: str = "auto"
    basis: str = "auto"
    tiers: tuple[str, ...] = ("cold",)
    targets: dict[str, Target] = field(default_factory=dict)
    predict: str = "tokens"
    block: int = BLOCK
    seed: int = 0
    held_out_windows: int = 2
    held_out_window: int = 1024
    profile_budget: int | None = None
    recompute: bool = False
    sample_windows: int = 16
    sample_bytes: int = SAMPLE_BYTES
    purpose: str = "caches"
    hot_bits: str = "free"
    shrinkage: float = 0.0

    def __post_init__(self) -> None:
        if self.purpose not in PURPOSES:
            raise InputError(
                f"--for {self.purpose!r} is not one of {', '.join(PURPOSES)}.{did_you_mean(self.purpose, PURPOSES)}"
            )
        if self.serving and (self.predict != "none" or "warm" in self.tiers):
            raise InputError(
                "--for serving makes the cold tier (for an engine's offloading) and the hot one (for its own pages), without "
                "prediction from token ids, which an engine's tier does not know: use --tier cold, hot or cold,hot, and "
                "--predict none (or leave it out)."
            )
        if self.steps < 1:
            raise InputError(f"--steps {self.steps}: at least one step is needed; 100 is the default.")
        if self.metric not in METRICS:
            raise InputError(
                f"--metric {self.metric!r} is not one of {', '.join(METRICS)}.{did_you_mean(self.metric, METRICS)}"
            )
        if self.predict not in ("tokens", "none"):
            raise InputError(f"--predict {self.predict!r} is not one of tokens, none.")
        if self.hot_bits not in HOT_BITS:
            raise InputError(
                f"--hot-bits {self.hot_bits!r} is not one of {', '.join(HOT_BITS)}.{did_you_mean(self.hot_bits, HOT_BITS)}"
            )
        if self.basis not in BASES:
            raise InputError(
                f"--basis {self.basis!r} is not one of {', '.join(BASES)}.{did_you_mean(self.basis, BASES)}"
            )
        if not 0 <= self.shrinkage <= 1:
            raise InputError(f"--shrinkage {self.shrinkage:g} is not a share between 0 and 1.")
        if self.window < 3 * self.block:
            raise InputError(
                f"--window {self.window} is too short: a token leaves the recent window after two blocks "
                f"of {self.block} tokens, so nothing would be learnt. Use at least {3 * self.block}."
            )
        if self.held_out_windows < 1 or self.held_out_window < 3 * self.block:
            raise InputError(f"Held-out text needs at least one window of at least {3 * self.block} tokens.")
        for tier in self.tiers:
            if tier not in TIERS:
                raise InputError(f"--tier {tier!r} is not one of {', '.join(TIERS)}, all.{did_you_mean(tier, TIERS)}")

    @property
    def serving(self) -> bool:
        """Whether the profile is for serving engines."""
        return self.purpose == "serving"

    @property
    def near_blocks(self) -> int:
        """Blocks that a query reads exactly, its own included: a streaming cache keeps one more, a restored prefix none."""
        return 1 if self.serving else 2

    def coded_geometry(self, geometry: CacheGeometry) -> CacheGeometry:
        """The geometry as it is coded: an engine's tier holds all layers of a chunk, whichever reads how far back."""
        return replace(geometry, windows=()) if self.serving else geometry

    def target(self, tier: str) -> Target:
        """The goal of a tier."""
        return self.targets.get(tier, parse_target(DEFAULT_TARGETS[tier]))

    def two_levels(self, geometry: CacheGeometry) -> bool:
        """Whether bases of several layers are solved in two levels: with `auto`, where one dense basis could not hold all."""
        return self.basis == "two-level" or (self.basis == "auto" and geometry.width > MAX_SPAN_WIDTH["dense"])

    def span_width(self, geometry: CacheGeometry) -> int:
        """Coordinates per group of the cold tier.

        Raises:
            InputError: not a known span, or a number of layers that does not divide L.
        """
        if self.span == "auto":
            widest = MAX_SPAN_WIDTH["two-level" if self.two_levels(geometry) else "dense"]
            best = max(
                (
                    n
                    for n in range(1, geometry.layers + 1)
                    if geometry.layers % n == 0 and n * geometry.layer_width <= widest
                ),
                default=1,
            )
            return best * geometry.layer_width
        named = {"head": geometry.head_dim, "layer": geometry.layer_width, "all": geometry.width}
        if self.span in named:
            return named[self.span]
        if not self.span.isdecimal() or int(self.span) < 1 or geometry.layers % int(self.span):
            divisors = [str(n) for n in range(1, geometry.layers + 1) if geometry.layers % n == 0]
            raise InputError(
                f"--span {self.span!r} must be head, layer, all, auto, or a number of layers that divides "
                f"{geometry.layers}: {', '.join(divisors)}."
            )
        return int(self.span) * geometry.layer_width

    def group_spans(self, geometry: CacheGeometry) -> list[int]:
        """`span_width` of each group of layers; of those that are never coded, a layer's."""
        coded = geometry.coded_groups(2 * BLOCK)
        return [
            self.span_width(geometry.part(group.layers)) if group in coded else geometry.layer_width
            for group in geometry.groups
        ]


def parse_targets(texts: list[str], tiers: tuple[str, ...]) -> dict[str, Target]:
    """`ratio=33` for the (first) calibrated tier, or `warm:ratio=8` for a named one.

    Raises:
        InputError: a malformed target, one for a tier that is not calibrated, or two for one tier.
    """
    out: dict[str, Target] = {}
    for text in texts:
        tier, colon, rest = text.partition(":")
        if not colon:
            tier, rest = tiers[0], text
        if tier not in tiers:
            raise InputError(f"--target {text!r} names tier {tier!r}, but only {', '.join(tiers)} will be calibrated.")
        if tier in out:
            raise InputError(
                f"--target {text!r} is the second one for the {tier} tier, which has one. Name the tier of each, as "
                "--target cold:ratio=33 --target warm:ratio=8."
            )
        out[tier] = parse_target(rest)
        if out[tier].quantity == "error" and tier != "cold":
            raise InputError(f"--target {text!r}: an error is a target of the cold tier; {tier} has a fixed rate.")
    return out
