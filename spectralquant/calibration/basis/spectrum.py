"""Weighted Karhunen–Loève transform: the basis in which an error costs the same in every coordinate.

Source: method.md section 2. For a covariance Σ and a metric M, R is a Cholesky factor of the regularized metric,
R Σ Rᵀ = U Λ Uᵀ, analysis A = Uᵀ R, synthesis S = R⁻¹ U. With the identity as metric this is plain PCA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.profile.factors import BasisFactors

EPSILON = 0.01
LARGE = 2048


@dataclass(frozen=True)
class WeightedBasis:
    """Basis of p coordinates with r kept components, sorted by falling variance.

    analysis `[r, p]`, synthesis `[p, r]`, mean `[p]`, variance `[r]` (of y = A(x − μ), in units of the metric).
    factors: its product form, where it has one. lost: variance outside its r components.
    """

    analysis: Tensor
    synthesis: Tensor
    mean: Tensor
    variance: Tensor
    factors: BasisFactors | None = None
    lost: float = 0.0

    def truncate(self, rank: int) -> WeightedBasis:
        """Keep the leading `rank` components."""
        lost = self.lost + float(self.variance[rank:].sum())
        return WeightedBasis(self.analysis[:rank], self.synthesis[:, :rank], self.mean, self.variance[:rank], lost=lost)


class FrequencyAnalyzer:
    """Solve for the weighted basis of one group of coordinates (a head, a layer, a span, all layers)."""

    def __init__(self, epsilon: float = EPSILON) -> None:
        self.epsilon = epsilon

    @staticmethod
    def solver_dtype(p: int, device: torch.device) -> torch.dtype:
        """float64, except for large problems on a CPU, where it takes a minute each and float32 is accurate enough."""
        return torch.float32 if p > LARGE and device.type == "cpu" else torch.float64

    def solve(
        self, covariance: Tensor, metric: Tensor | None, mean: Tensor, *, damping: float | None = None
    ) -> WeightedBasis:
        """Full-rank basis from `covariance, metric: [p, p]`; `metric=None` is the identity (energy).

        damping: what is added to the metric's diagonal; by default ε times its mean.
        Signs are fixed (largest entry of each analysis row positive), so equal input gives equal output.
        """
        p = covariance.shape[0]
        dtype = self.solver_dtype(p, covariance.device)
        covariance = covariance.to(dtype)
        metric = None if metric is None else metric.to(dtype)
        factor = metric_factor(metric, p, self.epsilon, covariance, damping)
        weighted = factor @ covariance @ factor.T
        weighted = (weighted + weighted.T) / 2
        eigenvalues, vectors = torch.linalg.eigh(weighted)
        vectors = vectors.flip(1)
        analysis = vectors.T @ factor
        top = analysis.abs().argmax(1, keepdim=True)
        signs = torch.sign(analysis.gather(1, top)).squeeze(1)
        synthesis = torch.linalg.solve_triangular(factor, vectors * signs, upper=True)
        return WeightedBasis(analysis * signs[:, None], synthesis, mean, eigenvalues.flip(0).clamp_min(0))


def shrunk(matrix: Tensor, blocks: Sequence[int], shrinkage: float) -> Tensor:
    """(1 − s)·X + s·(the diagonal blocks of X): what stands between blocks of these sizes is lowered by a share s.

    Few tokens tell less of how layers go together than of each layer. Positive matrices stay positive.
    """
    if not shrinkage:
        return matrix
    owner = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor(blocks)).to(matrix.device)
    same = owner[:, None] == owner
    return torch.where(same, matrix, matrix * (1 - shrinkage))


def metric_factor(metric: Tensor | None, p: int, epsilon: float, like: Tensor, damping: float | None = None) -> Tensor:
    """Upper-triangular R `[p, p]` with RᵀR = M + ε·tr(M)/p·I, or M + damping·I."""
    if metric is None:
        return torch.eye(p, dtype=like.dtype, device=like.device)
    trace = metric.diagonal().mean().item()
    if trace + (damping or 0.0) <= 0:
        return torch.eye(p, dtype=like.dtype, device=like.device)
    added = epsilon * trace if damping is None else damping
    damped = metric + added * torch.eye(p, dtype=metric.dtype, device=metric.device)
    return torch.linalg.cholesky(damped, upper=True)


def gaussian_rate(variance: Tensor, step: float) -> Tensor:
    """Bits per token of uniform quantization at `step`: entropy of a Gaussian quantized with step Δ, `[r]`.

    A prediction (labelled so wherever it is shown), exact for Gaussian components; real rates come from tables.
    """
    ratio = variance.clamp_min(1e-30).sqrt() / step
    grid = torch.arange(-64, 65, device=variance.device, dtype=torch.float64)
    upper = torch.special.ndtr((grid[:, None] + 0.5) / ratio.double())
    lower = torch.special.ndtr((grid[:, None] - 0.5) / ratio.double())
    p = (upper - lower).clamp_min(1e-300)
    small = -(p * p.log2()).sum(0)
    large = 0.5 * torch.log2(2 * torch.pi * torch.e * ratio.double().square())
    return torch.where(ratio < 8, small, large)
