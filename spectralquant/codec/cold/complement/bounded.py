"""`BoundedEncoder`: each block in the fewest bytes that keep a bound on its error.

A block's error is what its dropped and rounded parts cost a token in the metric of the loss, each token weighted as its
importance says. Inside the basis it is the first stage's own rounding; outside of it a sketch tells it (`OutsideSketch`), so
that a block that keeps its bound as it was calibrated costs little more than without one. Others get their residual coded by
the heads' own bases, as coarsely as the bound allows, or by TurboQuant, or are raw. Steps are never coarser than calibrated.

Errors inside the basis cancel across layers as on the calibration's text; those of a second stage do not. So the two have
limits of their own, which calibration measures (`profile.promises`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold.complement import bounded_block, turbo
from spectralquant.codec.cold.complement.coder import ComplementCoder, ComplementSymbols
from spectralquant.codec.cold.complement.first_stage import FirstStage
from spectralquant.codec.cold.complement.heads import WeightedHeads
from spectralquant.codec.cold.importance import class_step
from spectralquant.codec.cold.projected import Projected, QuantizedRun

FINEST, COARSEST = -64, 24
TRIALS = 4
CLOSE, AIM = 0.8, 0.92
SAMPLED, ROUNDED = 16, 0.16


@dataclass(frozen=True)
class ErrorBound:
    """The largest error of a block as calibrated, and with a second stage: squared base steps a token. share: of a model's
    coded layers, those that a codec has.
    """

    plain: float
    second: float
    share: float = 1.0


@dataclass(frozen=True)
class BlockError:
    """first: error before any second stage; outside: the part of it that lies outside of the basis; left: what a second
    stage left, or None where there is none.
    """

    first: float
    outside: float
    left: float | None = None


@dataclass(frozen=True)
class _Second:
    """A second stage at `scale` (eighths of an octave from the first stage's steps), and the error that it leaves."""

    scale: int
    coded: ComplementSymbols
    error: float


class BoundedEncoder:
    """Encodes blocks for a codec with a bound."""

    def __init__(self, codec: FirstStage, heads: WeightedHeads, coder: ComplementCoder, bound: ErrorBound) -> None:
        self.codec, self.heads, self.coder, self.bound = codec, heads, coder, bound

    def encode_run(self, blocks: Sequence[KVBlock]) -> list[bytes]:
        """Bytes of blocks whose errors are at most the codec's bound; raw where nothing else keeps it."""
        projected = self.codec.projected(blocks)
        steps = class_step(projected.classes) * self.codec.step_scale
        run = self.codec.symbols(projected, projected.classes, steps)
        lengths = [b.tokens for b in blocks]
        good = [bool(g.all()) for g in run.good.split(lengths)]
        each = torch.stack(self._alone(projected, run, steps), dim=1)
        means = torch.stack([e.mean(0) for e in each.split(lengths)]).tolist()
        errors = [BlockError(inside + outside, outside) for inside, outside in means]
        kept = [g and e.first <= self.bound.plain for g, e in zip(good, errors, strict=True)]
        coded = iter(self._plain(blocks, kept, run))
        out, first = [], 0
        for block, fits, fine, error in zip(blocks, kept, good, errors, strict=True):
            here = slice(first, first + block.tokens)
            first += block.tokens
            if fits:
                out.append(next(coded))
                self.codec.errors.append(error)
            elif not fine:
                out.append(self.codec.raw(block))
                self.codec.errors.append(BlockError(0.0, 0.0, 0.0))
            else:
                part = QuantizedRun(run.symbols[:, here].contiguous(), run.classes[here], run.good[here])
                data, left = self._finer(block, part, steps[here], projected, here)
                out.append(data)
                self.codec.errors.append(replace(error, left=left))
        return out

    def _alone(self, projected: Projected, run: QuantizedRun, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Error of the first stage alone inside and outside of its basis, `[N]` each."""
        assert projected.outside is not None
        values = self.codec.dequantize(run.symbols, steps)
        inside = torch.stack([(y - v).square().sum(1) for y, v in zip(projected.y, values, strict=True)], dim=1)
        weight = weights(run.classes)
        return (inside * weight).sum(1), (projected.outside * weight).sum(1)

    def _plain(self, blocks: Sequence[KVBlock], kept: Sequence[bool], run: QuantizedRun) -> list[bytes]:
        some = [b for b, k in zip(blocks, kept, strict=True) if k]
        if not some:
            return []
        which = torch.cat([torch.full((b.tokens,), k) for b, k in zip(blocks, kept, strict=True)])
        return self.codec.coded(some, run.part(which.to(run.symbols.device)))

    def _finer(
        self, block: KVBlock, run: QuantizedRun, steps: Tensor, projected: Projected, here: slice
    ) -> tuple[bytes, float]:
        """A block with a second stage, or raw; and the error that it leaves."""
        features = None if projected.features is None else projected.features.part(here.start, here.stop)
        data: bytes | None
        keys, values = self.codec.reconstructed(run.symbols, steps, features)
        residual = torch.stack([block.keys.to(keys) - keys, block.values.to(values) - values])
        first, error, data = self.codec.coded([block], run)[0], math.nan, None
        second = self._second(self.heads.project(residual[0], residual[1]), steps, run.classes)
        if second is not None:
            data = bounded_block.join(
                bounded_block.COMPLEMENT, block.tokens, 0, second.scale, first, self.coder.encode(second.coded)
            )
            error = second.error
        if data is None or 4 * len(data) > block.fp16_bytes:
            data, error = self._turbo(block, first, residual, run.classes, (data, error))
        if data is None or len(data) >= block.fp16_bytes:
            return self.codec.raw(block), 0.0
        return data, error

    def _second(self, left: Tensor, steps: Tensor, classes: Tensor) -> _Second | None:
        """The coarsest second stage that keeps the bound; left: the residual `[H, D, T]` in the heads' bases."""
        weight = self.heads.kind_steps(weights(classes))
        best, low, high = None, FINEST - 1, COARSEST + 1
        scale = self._guess(left, self.heads.kind_steps(steps), weight)
        for _ in range(TRIALS):
            at = self.heads.kind_steps(steps * 2 ** (scale / bounded_block.EIGHTHS))
            coded = self.coder.symbols(left, at)
            error = self.heads.error((left - self.coder.values(coded.symbols, at)) * weight.sqrt())
            if error <= self.bound.second:
                best, low = _Second(scale, coded, error), scale
                if error >= CLOSE * self.bound.second:
                    break
            else:
                high = scale
            # the error grows about as the step to the power of 1.5
            guess = scale + round(5 * math.log2(AIM * self.bound.second / max(error, 1e-9)))
            scale = min(max(guess, low + 1), high - 1)
            if high - low <= 1:
                break
        return best

    def _guess(self, left: Tensor, steps: Tensor, weight: Tensor) -> int:
        """The scale at which uniform quantization with a dead zone would meet the bound, on a sample of the tokens."""
        some = slice(None, None, max(1, left.shape[2] // SAMPLED))
        square, step2 = left[..., some].square(), steps[..., some].square().expand(-1, 1, -1)
        weight = weight[..., some] / square.shape[2]
        low, high = FINEST, COARSEST
        while high - low > 2:
            middle = (low + high) // 2
            at = step2 * 4 ** (middle / bounded_block.EIGHTHS)
            error = (torch.minimum(square, at * ROUNDED).mul_(weight)).sum()
            low, high = (middle, high) if float(error) <= AIM * self.bound.second else (low, middle)
        return low

    def _turbo(
        self, block: KVBlock, first: bytes, residual: Tensor, classes: Tensor, best: tuple[bytes | None, float]
    ) -> tuple[bytes | None, float]:
        """TurboQuant of the residual at the fewest bits that keep the bound, where that is shorter than `best` (bytes, error)."""
        weight = self.heads.kind_steps(weights(classes)).sqrt()
        for bits in turbo.BITS:
            rest = turbo.encode(residual, bits)
            if best[0] is not None and len(rest) + len(first) >= len(best[0]):
                return best
            left = residual - turbo.decode(rest, bits, block.tokens, self.codec.geometry).to(residual)
            error = self.heads.error(self.heads.project(left[0], left[1]) * weight)
            if error <= self.bound.second:
                return bounded_block.join(bounded_block.TURBO, block.tokens, 0, bits, first, rest), error
        return best


def weights(classes: Tensor) -> Tensor:
    """What errors of tokens of importance classes `[N, 2]` cost, relative to a token of the base step."""
    return class_step(classes).square().reciprocal()
