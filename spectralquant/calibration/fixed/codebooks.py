"""Scalar codebooks fitted on calibration data (Lloyd 1982, IEEE Trans. Inf. Theory 28(2), method I).

Gaussian codebooks lose badly to these (method.md section 1), so neither codebook nor distortion is assumed. The hot
tier is read in place, so its points are evenly spaced: a code is then a number that attention multiplies with, and
step and offset go into the query (for keys) or into the transform of the output (for values).
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 12
UNIFORM_STEPS = 16
SHIFTS = (-2, -1, -0.5, -0.25, -0.125, 0.125, 0.25, 0.5, 1, 2)  # of a step
SCALES = (0.75, 0.87, 0.94, 1.06, 1.15, 1.33)
ROUNDS = {2: 2, 4: 2, 6: 1}  # by bits: where there are many points, it matters little where they lie


def fit_codebooks(samples: Tensor, bits: int, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codebooks of 2^bits points for many components at once.

    Args:
        samples: float32 `[N, T]`, T values of each of N components.
        bits: 0 gives the single point that minimizes the error, the mean.
        importance: `[N, T]` or `[T]`, what an error of each sample costs beside others (1 on average); None: all the same.

    Returns:
        points float32 `[N, 2^bits]`, ascending, and mean squared error float32 `[N]` on the samples, weighted.
    """
    ordered, order = samples.sort(dim=1)
    ordered = ordered.double()
    t = ordered.shape[1]
    size = 2**bits
    weight = torch.ones_like(ordered) if importance is None else importance.expand_as(samples).gather(1, order).double()
    mass, first, second = (_sums(weight * ordered**power) for power in range(3))
    positions = ((torch.arange(size, device=samples.device) + 0.5) / size * t).long().clamp(max=t - 1)
    spread = torch.linspace(0, 1, size, dtype=torch.float64, device=samples.device) if size > 1 else positions * 0.0
    uniform = ordered[:, :1] + (ordered[:, -1:] - ordered[:, :1]) * spread
    points = (0.7 * ordered[:, positions] + 0.3 * uniform).sort(dim=1).values
    for _ in range(ITERATIONS if size > 1 else 1):
        edges = _edges(ordered, points, t)
        count, total = mass.gather(1, edges).diff(dim=1), first.gather(1, edges).diff(dim=1)
        points = torch.where(count > 0, total / count.clamp_min(1e-12), points).sort(dim=1).values
    edges = _edges(ordered, points, t)
    count, total, energy = (x.gather(1, edges).diff(dim=1) for x in (mass, first, second))
    error = (energy - 2 * points * total + count * points.square()).sum(1) / t
    return points.float(), error.clamp_min(0).float()


def _sums(x: Tensor) -> Tensor:
    """Sums of the first 0, 1, … T of `x: [N, T]`."""
    return torch.nn.functional.pad(x.cumsum(1), (1, 0))


def fit_uniform_codebooks(samples: Tensor, bits: int, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `fit_codebooks`, with evenly spaced points: their step and where they lie are searched on the samples.

    Tokens that many queries read to rest on (attention sinks) have small values that hardly differ: an error there is the
    same in all of them, so that it counts where the points lie.

    Args:
        importance: `[N, T]` or `[T]`, what an error of each sample costs beside others (1 on average); None: all the same.
    """
    if bits == 0:
        return fit_codebooks(samples, 0, importance)
    weight = samples.new_ones(1, 1) if importance is None else importance.expand_as(samples)
    centre = samples.mean(1, keepdim=True)
    spread = (samples - centre).square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
    widest = ((samples - centre).abs().amax(1, keepdim=True) / spread).clamp_min(1.0)
    best = _EvenPoints(samples, weight, 2**bits - 1, spread, centre)
    for share in torch.linspace(0.2, 1.0, UNIFORM_STEPS).tolist():
        best.offer(spread * (2 * widest * share / best.last), centre)
    for _ in range(ROUNDS.get(bits, 0)):
        step, start = best.step, best.centre
        for shift in SHIFTS:
            best.offer(step, start + shift * step)
        step = best.step
        for scale in SCALES:
            best.offer(scale * step, best.centre)
        best.offer(*best.least_squares())
    points = best.centre + best.step * (torch.arange(best.last + 1, device=samples.device) - best.last / 2)
    return points, best.error[:, 0]


class _EvenPoints:
    """The best of the evenly spaced points offered so far, for every component. step, centre, error: `[N, 1]`."""

    def __init__(self, samples: Tensor, weight: Tensor, last: int, step: Tensor, centre: Tensor) -> None:
        self.samples, self.weight, self.last = samples, weight, last
        self.step, self.centre, self.error = step, centre, torch.full_like(step, float("inf"))

    def _codes(self, step: Tensor, centre: Tensor) -> Tensor:
        """Codes less their middle."""
        return ((self.samples - centre) / step + self.last / 2).round_().clamp_(0, self.last).sub_(self.last / 2)

    def offer(self, step: Tensor, centre: Tensor) -> None:
        """Take these where their weighted error is less."""
        off = self._codes(step, centre).mul_(step).add_(centre).sub_(self.samples)
        error = off.square_().mul_(self.weight).mean(1, keepdim=True)
        better = error < self.error
        self.step, self.centre = torch.where(better, step, self.step), torch.where(better, centre, self.centre)
        self.error = torch.minimum(self.error, error)

    def least_squares(self) -> tuple[Tensor, Tensor]:
        """Step and centre that are best for the codes that samples have now."""
        codes = self._codes(self.step, self.centre)
        total = self.weight.expand_as(codes).mean(1, keepdim=True)
        mean = lambda x: (self.weight * x).mean(1, keepdim=True) / total  # noqa: E731
        code, value = mean(codes), mean(self.samples)
        covariance = mean(codes * self.samples) - code * value
        step = covariance / (mean(codes.square()) - code.square()).clamp_min(1e-12)
        step = torch.where(step > 0, step, self.step)
        return step, value - step * code


def _edges(ordered: Tensor, points: Tensor, t: int) -> Tensor:
    middles = ((points[:, 1:] + points[:, :-1]) / 2).contiguous()
    inner = torch.searchsorted(ordered, middles)
    edge = torch.zeros(len(ordered), 1, dtype=torch.int64, device=ordered.device)
    return torch.cat([edge, inner, edge + t], dim=1)
