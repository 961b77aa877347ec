"""`BoundedEncoder`: each block in the fewest bytes that keep a bound on its error.

The encoder has the exact keys and values, so it knows a block's error, dropped components included: measured head by
head in the metric of the loss (`WeightedHeads.error`). Tried are the block as
calibrated, with finer steps, with the residual coded by the heads' own bases (at the first stage's steps, which are searched
together), with TurboQuant of the residual, and raw; never with coarser steps than were calibrated.

Errors of the first stage cancel across layers, those of a second do not: for the same error in the heads' metric they cost
1.2 (a foreign language) to 3.5 times (the profile's own text) the KL. So they count `INDEPENDENT` times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold import rans_block
from spectralquant.codec.cold.complement import bounded_block, turbo
from spectralquant.codec.cold.complement.coder import ComplementCoder, ComplementSymbols
from spectralquant.codec.cold.complement.first_stage import FirstStage
from spectralquant.codec.cold.complement.heads import WeightedHeads
from spectralquant.codec.cold.importance import CLASSES, NEUTRAL, class_step
from spectralquant.codec.cold.projected import Projected

FINEST, COARSEST = -48, 0
TRIALS = 5
INDEPENDENT = 3.0


@dataclass(frozen=True)
class ErrorBound:
    """The largest error of a block: squared base steps a token (`WeightedHeads.error`)."""

    error: float


@dataclass
class _Trial:
    """The first stage at one scale. symbols int32 `[R, T]`; residual keys and values `[T, L, Hk, D]`; left: in the
    heads' bases; steps `[T, 2]` of the first stage; bits: of the first stage."""

    scale: int
    symbols: Tensor
    classes: Tensor
    residual: tuple[Tensor, Tensor]
    left: Tensor
    steps: Tensor
    bits: float
    error: float
    second: ComplementSymbols | None = None
    second_error: float = math.inf
    second_bits: float = math.inf

    @property
    def both_bits(self) -> float:
        return self.bits + self.second_bits


class BoundedEncoder:
    """Encodes single blocks for a codec with a bound."""

    def __init__(self, codec: FirstStage, heads: WeightedHeads, coder: ComplementCoder, bound: ErrorBound) -> None:
        self.codec, self.heads, self.coder, self.bound = codec, heads, coder, bound

    def encode(self, block: KVBlock) -> bytes:
        """Bytes of a block whose error is at most the codec's bound; raw where nothing else keeps it."""
        bound, data, error = self.bound, None, math.nan
        projected = self.codec.projected([block])
        trials: dict[int, _Trial] = {}

        def trial(scale: int) -> _Trial:
            if scale not in trials:
                trials[scale] = self._trial(block, projected, scale)
            return trials[scale]

        if not bool(projected.finite):
            return self.codec.raw(block)
        alone = self._alone(trial, bound)
        if alone is None or alone.scale < 0:
            both = self._both(trial, bound)
            if both is not None and both.second is not None and (alone is None or both.both_bits < alone.bits):
                data = self._joined(block, both, self.coder.encode(both.second), bounded_block.COMPLEMENT, 0)
                error = both.second_error
        if data is None and alone is not None:
            data, error = self._joined(block, alone), alone.error
        if data is None or 4 * len(data) > block.fp16_bytes:
            data = self._turbo(block, trial(0), bound, data)
        self.codec.errors.append(error)
        return self.codec.raw(block) if data is None or len(data) >= block.fp16_bytes else data

    def _alone(self, trial: Callable[[int], _Trial], bound: ErrorBound) -> _Trial | None:
        """The first stage alone: as calibrated, or else up to half an octave finer."""
        start = trial(0)
        if start.error <= bound.error:
            return start
        for scale in (-2, -4):
            if start.error * 2 ** (scale / 4) <= bound.error * 1.2 and trial(scale).error <= bound.error:
                return trial(scale)
        return None

    def _both(self, trial: Callable[[int], _Trial], bound: ErrorBound) -> _Trial | None:
        """Both stages at the coarsest common step that keeps the bound."""
        good, low, high, scale = None, FINEST - 1, COARSEST + 1, 0
        for _ in range(TRIALS):
            tried = trial(scale)
            self._complement(tried)
            if tried.second_error <= bound.error:
                good, low = tried, scale
            else:
                high = scale
            # the error of both stages grows about as the square of the step
            guess = scale + round(4 * math.log2(bound.error / max(tried.second_error, 1e-9)) * 0.9)
            scale = min(max(guess, low + 1, FINEST), high - 1, COARSEST)
            if high - low <= 1 or scale in (low, high):
                break
        return good

    def _trial(self, block: KVBlock, projected: Projected, scale: int) -> _Trial:
        moved, rest = bounded_block.octaves(scale)
        classes = projected.classes
        if moved:  # tokens whose attention nobody saw join the others
            classes = (torch.where(classes >= CLASSES, NEUTRAL, classes) + moved).clamp(0, CLASSES - 1)
        steps = class_step(classes) * (self.codec.step_scale * rest)
        run = self.codec.symbols(projected, classes, steps)
        keys, values = self.codec.reconstructed(run.symbols, steps, projected.features)
        residual = block.keys.to(keys) - keys, block.values.to(values) - values
        left = self.heads.project(*residual)
        error = self.heads.error(left)
        bits = self.codec.coder.ideal_bits(run.symbols, classes)
        return _Trial(
            scale, run.symbols, classes, residual, left, steps, bits, error if bool(run.good.all()) else math.inf
        )

    def _complement(self, tried: _Trial) -> None:
        if tried.second is None and math.isfinite(tried.error):
            steps = self.heads.kind_steps(tried.steps)
            tried.second = self.coder.symbols(tried.left, steps)
            tried.second_bits = self.coder.total_bits(tried.second)
            tried.second_error = INDEPENDENT * self.heads.error(
                tried.left - self.coder.values(tried.second.symbols, steps)
            )

    def _joined(self, block: KVBlock, t: _Trial, rest: bytes = b"", stage: int = 0, second: int = 0) -> bytes:
        parts = self.codec.coder.encode(
            t.symbols, t.classes, [block.tokens], [self.codec.ids(block)], adaptive_tables=self.codec.adaptive_tables
        )
        first = rans_block.join(parts[0])
        if not stage and not t.scale:
            return first
        return bounded_block.join(stage, block.tokens, t.scale, second, first, rest)

    def _turbo(self, block: KVBlock, first: _Trial, bound: ErrorBound, data: bytes | None) -> bytes | None:
        """TurboQuant of the residual at the fewest bits that keep the bound, where that is shorter than `data`."""
        if not math.isfinite(first.error):
            return data
        residual = torch.stack(first.residual)
        for bits in turbo.BITS:
            rest = turbo.encode(residual, bits)
            if data is not None and len(rest) + first.bits / 8 >= len(data):
                return data
            left = residual - turbo.decode(rest, bits, block.tokens, self.codec.geometry).to(residual)
            if self.heads.error(self.heads.project(left[0], left[1])) <= bound.error:
                return self._joined(block, first, rest, bounded_block.TURBO, bits)
        return data
