"""A basis over many layers in two levels: one a layer, then one across layers on the coefficients that are worth keeping.

A dense basis over P coordinates needs a P × P eigenproblem and 2·R·P numbers in the profile. Here each layer is solved on its
own (C × C), its leading components are kept, and the eigenproblem across layers is theirs (P′ × P′; over all groups P′ ≤ 8,192). Both
levels weigh errors by the same metric, the part of it between layers included. What is lost is what the dropped components
of the first level carry: at most `DROPPED` of the weighted energy where P′ allows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.calibration.basis.predictor import residual_covariance
from spectralquant.calibration.basis.spectrum import EPSILON, FrequencyAnalyzer, WeightedBasis, shrunk
from spectralquant.calibration.capture.statistics import SpanMoments
from spectralquant.calibration.capture.symmetric import SymmetricSum
from spectralquant.profile.factors import BasisFactors, IntegerRows

MAX_INNER = 8192
DROPPED = 1e-4
FINE_OUTER = 256


@dataclass(frozen=True)
class TwoLevelForm:
    """most: inner components over all layers. dropped: share of the weighted energy that the first level may leave out. fine:
    outer rows that are kept in 16 bits, the others in 8.
    """

    most: int = MAX_INNER
    dropped: float = DROPPED
    fine: int = FINE_OUTER


@dataclass(frozen=True)
class TwoLevelProblem:
    """Sums of one group of P coordinates, in layers of `layer` each, over `count` tokens.

    second: Σxxᵀ. metric: Σggᵀ, or the metric itself as blocks `[heads, D, D]`, or None for the identity. mean: μ `[P]` float64. predicted: weight `[F, P]` float32, the
    features' centred covariance `[F, F]` and cross covariance `[F, P]` float64, or None.
    """

    second: SymmetricSum
    metric: SymmetricSum | Tensor | None
    mean: Tensor
    count: int
    layer: int
    predicted: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def parts(self) -> list[slice]:
        """Coordinates of each layer."""
        return [slice(at, at + self.layer) for at in range(0, len(self.mean), self.layer)]

    def covariance(self, part: slice) -> Tensor:
        """Of one layer, what the predictor leaves of it, float64 `[C, C]`."""
        full = self.second.block(part).to(self.mean) / self.count - torch.outer(self.mean[part], self.mean[part])
        if self.predicted is None:
            return full
        weight, gram, cross = self.predicted
        return residual_covariance(full, weight[:, part], gram, cross[:, part])

    @property
    def mean_metric(self) -> float:
        """The metric's mean diagonal entry per token."""
        if isinstance(self.metric, Tensor):
            return float(self.metric.diagonal(dim1=-2, dim2=-1).mean())
        return float(self.metric.diagonal().double().mean()) / self.count

    def metric_of(self, part: slice) -> Tensor | None:
        """The metric of one layer per token, float64 `[C, C]`."""
        if self.metric is None:
            return None
        if isinstance(self.metric, Tensor):
            heads = self.layer // self.metric.shape[-1]
            first = part.start // self.metric.shape[-1]
            return torch.block_diag(*self.metric[first : first + heads])
        return self.metric.block(part).to(self.mean) / self.count

    def projected_covariance(self, analysis: Sequence[Tensor]) -> Tensor:
        """A Σ Aᵀ `[P′, P′]` in the kind of `analysis: [r, C]`, one a layer, without the dense Σ."""
        raw = _projected(self.second, self.parts, analysis) / self.count
        mean = torch.cat([a @ self.mean[part].to(a) for a, part in zip(analysis, self.parts, strict=True)])
        raw -= torch.outer(mean, mean)
        if self.predicted is not None:
            weight, gram, cross = self.predicted
            half = torch.cat(
                [
                    (cross[:, part] - gram @ weight[:, part].double() / 2).to(a) @ a.T
                    for a, part in zip(analysis, self.parts, strict=True)
                ],
                dim=1,
            )
            ours = torch.cat([weight[:, p].to(a) @ a.T for a, p in zip(analysis, self.parts, strict=True)], dim=1)
            half = ours.T @ half
            raw -= half + half.T
        return raw

    def projected_metric(self, synthesis: Sequence[Tensor], damping: float) -> Tensor:
        """Sᵀ (M + damping·I) S `[P′, P′]` of `synthesis: [C, r]`, one a layer."""
        if isinstance(self.metric, Tensor):
            own = [s.T @ self.metric_of(part).to(s) @ s for s, part in zip(synthesis, self.parts, strict=True)]
            out = torch.block_diag(*own)
        else:
            out = _projected(self.metric, self.parts, [s.T for s in synthesis]) / self.count
        return out + damping * torch.block_diag(*[s.T @ s for s in synthesis])


def two_level_problems(
    moments: SpanMoments, layer: int, predicted: tuple[Tensor, Tensor, Tensor] | None, *, metric: bool
) -> Iterator[tuple[slice, TwoLevelProblem]]:
    """Coordinates and problem of each of the spans that sums are kept for."""
    heads = moments.head_metric
    for i, second in enumerate(moments.second):
        part = slice(i * moments.span, (i + 1) * moments.span)
        own = moments.metric[i] if heads is None else heads.chunk(len(moments.second))[i]
        some = None if predicted is None else (predicted[0][:, part], predicted[1], predicted[2][:, part])
        yield part, TwoLevelProblem(second, own if metric else None, moments.mean[part], moments.count, layer, some)


def solve_two_levels(
    problem: TwoLevelProblem,
    offset: Tensor,
    form: TwoLevelForm = TwoLevelForm(),
    shrinkage: float = 0.0,
) -> WeightedBasis:
    """The basis of one group, rounded as the profile will hold it; its mean is `offset: [P]`. shrinkage: see `shrunk`."""
    analyzer = FrequencyAnalyzer()
    damping = None if problem.metric is None else EPSILON * problem.mean_metric
    inner = []
    for part in problem.parts:
        solved = analyzer.solve(problem.covariance(part), problem.metric_of(part), offset[part], damping=damping)
        inner.append(
            WeightedBasis(*(t.float() for t in (solved.analysis, solved.synthesis, solved.mean, solved.variance)))
        )
    inner, lost = _leading(inner, form.most, form.dropped)
    counts = [len(b.variance) for b in inner]
    rows = (torch.cat([b.analysis for b in inner]), torch.cat([b.synthesis.T for b in inner]))
    first = [IntegerRows.of(part, sum(counts)) for part in rows]
    analysis = list(first[0].dense().split(counts))
    synthesis = [rows.T for rows in first[1].dense().split(counts)]
    dtype = analyzer.solver_dtype(sum(counts), offset.device)
    covariance = shrunk(problem.projected_covariance([a.to(dtype) for a in analysis]), counts, shrinkage)
    metric = None
    if damping is not None:
        metric = shrunk(problem.projected_metric([s.to(dtype) for s in synthesis], damping), counts, shrinkage)
    outer = analyzer.solve(covariance, metric, offset.new_zeros(sum(counts)), damping=0.0)
    second = [IntegerRows.of(part.float(), form.fine) for part in (outer.analysis, outer.synthesis.T)]
    factors = BasisFactors(*first, torch.tensor(counts), *second)
    return WeightedBasis(
        factors.rows("analysis"),
        factors.rows("synthesis").T,
        offset,
        outer.variance.float(),
        factors=factors,
        lost=lost,
    )


def _starts(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:i]) for i in range(len(counts))]


def _leading(bases: list[WeightedBasis], most: int, dropped: float) -> tuple[list[WeightedBasis], float]:
    """The components of largest variance over all layers, at least one a layer, and the variance of the others."""
    variance = torch.cat([b.variance for b in bases])
    falling = variance.sort(descending=True).values
    tail = falling.double().sum() - falling.double().cumsum(0)
    count = min(most, int((tail > dropped * falling.double().sum()).sum()) + 1)
    level = falling[count - 1]
    kept = [b.truncate(max(1, int((b.variance >= level).sum()))) for b in bases]
    return kept, float(variance.double().sum() - sum(b.variance.double().sum() for b in kept))


def _projected(sums: SymmetricSum, parts: Sequence[slice], rows: Sequence[Tensor]) -> Tensor:
    """B X Bᵀ for the symmetric sum X and block-diagonal B with blocks `rows[i]: [r, C]`."""
    starts = _starts([len(r) for r in rows])
    out = rows[0].new_zeros(sum(map(len, rows)), sum(map(len, rows)))
    for i, (a, part) in enumerate(zip(rows, parts, strict=True)):
        for j in range(i + 1):
            block = a @ sums.block(part, parts[j]).to(a) @ rows[j].T
            out[starts[i] : starts[i] + len(a), starts[j] : starts[j] + len(rows[j])] = block
            out[starts[j] : starts[j] + len(rows[j]), starts[i] : starts[i] + len(a)] = block.T
    return out
