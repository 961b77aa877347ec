"""Scalar codebooks fitted on calibration data (Lloyd 1982, IEEE Trans. Inf. Theory 28(2), method I).

Gaussian codebooks lose badly to these (method.md section 1), so neither codebook nor distortion is assumed. The hot
tier is read in place, so its points are evenly spaced: a code is then a number that attention multiplies with, and
step and offset go into the query (for keys) or into the transform of the output (for values).
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 12
UNIFORM_STEPS = 24


def fit_codebooks(samples: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codebooks of 2^bits points for many components at once.

    Args:
        samples: float32 `[N, T]`, T values of each of N components.
        bits: 0 gives the single point that minimizes the error, the mean.

    Returns:
        points float32 `[N, 2^bits]`, ascending, and mean squared error float32 `[N]` on the samples.
    """
    ordered = samples.sort(dim=1).values.double()
    n, t = ordered.shape
    size = 2**bits
    zero = ordered.new_zeros(n, 1)
    first = torch.cat([zero, ordered.cumsum(1)], dim=1)
    second = torch.cat([zero, ordered.square().cumsum(1)], dim=1)
    positions = ((torch.arange(size, device=samples.device) + 0.5) / size * t).long().clamp(max=t - 1)
    spread = torch.linspace(0, 1, size, dtype=torch.float64, device=samples.device) if size > 1 else positions * 0.0
    uniform = ordered[:, :1] + (ordered[:, -1:] - ordered[:, :1]) * spread
    points = (0.7 * ordered[:, positions] + 0.3 * uniform).sort(dim=1).values
    for _ in range(ITERATIONS if size > 1 else 1):
        edges = _edges(ordered, points, t)
        count = edges.diff(dim=1)
        total = first.gather(1, edges).diff(dim=1)
        points = torch.where(count > 0, total / count.clamp_min(1), points).sort(dim=1).values
    edges = _edges(ordered, points, t)
    count = edges.diff(dim=1)
    total, energy = first.gather(1, edges).diff(dim=1), second.gather(1, edges).diff(dim=1)
    error = (energy - 2 * points * total + count * points.square()).sum(1) / t
    return points.float(), error.clamp_min(0).float()


def fit_uniform_codebooks(samples: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """As `fit_codebooks`, with evenly spaced points centred on the mean; the step is searched on the samples."""
    if bits == 0:
        return fit_codebooks(samples, 0)
    centre = samples.mean(1, keepdim=True)
    centred = samples - centre
    spread = centred.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
    last = 2**bits - 1
    best = samples.new_full((len(samples), 1), float("inf"))
    step = spread.clone()
    widest = (centred.abs().amax(1, keepdim=True) / spread).clamp_min(1.0)
    for share in torch.linspace(0.25, 1.0, UNIFORM_STEPS):
        trial = spread * (2 * widest * share / last)
        codes = (centred / trial + last / 2).round_().clamp_(0, last)
        error = codes.sub_(last / 2).mul_(trial).sub_(centred).square_().mean(1, keepdim=True)
        step = torch.where(error < best, trial, step)
        best = torch.minimum(best, error)
    points = centre + step * (torch.arange(last + 1, device=samples.device) - last / 2)
    return points, best[:, 0]


def _edges(ordered: Tensor, points: Tensor, t: int) -> Tensor:
    middles = ((points[:, 1:] + points[:, :-1]) / 2).contiguous()
    inner = torch.searchsorted(ordered, middles)
    edge = torch.zeros(len(ordered), 1, dtype=torch.int64, device=ordered.device)
    return torch.cat([edge, inner, edge + t], dim=1)
