"""Per-head spectra: the blocks of the big sums that belong to one head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectralquant.calibration.basis.rank import NyquistRankSelector
from spectralquant.calibration.basis.spectrum import FrequencyAnalyzer, gaussian_rate
from spectralquant.calibration.capture.statistics import SpanMoments
from spectralquant.geometry import CacheGeometry
from spectralquant.profile.tensors import HeadSpectra


def head_spectra(
    geometry: CacheGeometry,
    moments: list[SpanMoments],
    entropy: Tensor,
    step: float,
    finer: Sequence[float] = (),
    *,
    use_metric: bool,
) -> HeadSpectra:
    """Basis, spectrum, rank and bits of every head at the water level of `step` (in units of the metric).

    finer: what each layer's step is of that; gains and variances are in units in which all steps are the same.
    """
    dim, shape = geometry.head_dim, (geometry.layers, geometry.kv_heads)
    entropy = entropy.float().cpu()
    grouped = entropy.view(*shape, geometry.group).mean(-1)
    unit = torch.tensor(finer or [1.0] * geometry.layers, dtype=torch.float64)[:, None, None]
    selector = NyquistRankSelector(step)
    analyzer = FrequencyAnalyzer()
    parts: dict[str, list[Tensor]] = {name: [] for name in ("basis", "synthesis", "gain", "variance", "rank", "bits")}
    for moment in moments:
        zero = torch.zeros(dim, dtype=torch.float64)
        bases = [
            analyzer.solve(covariance.cpu(), None if metric is None else metric.cpu(), zero)
            for _, covariance, metric in moment.groups(dim, metric=use_metric)
        ]
        variance = torch.stack([b.variance for b in bases]).view(*shape, dim) / unit.square()
        parts["basis"].append(torch.stack([_unit(b.analysis, 1) for b in bases]).view(*shape, dim, dim).half())
        parts["synthesis"].append(torch.stack([_unit(b.synthesis, 0) for b in bases]).view(*shape, dim, dim).half())
        gain = torch.stack([b.analysis.norm(dim=1) for b in bases]).view(*shape, dim) / unit
        parts["gain"].append(gain.float())
        parts["variance"].append(variance.float())
        parts["rank"].append(selector.ranks(variance, grouped))
        parts["bits"].append(gaussian_rate(variance.flatten(), step).view(*shape, dim).sum(-1).float() / dim)
    stacked = {name: torch.stack(value) for name, value in parts.items()}
    return HeadSpectra(entropy=entropy, **stacked)


def _unit(matrix: Tensor, dim: int) -> Tensor:
    return matrix / matrix.norm(dim=dim, keepdim=True).clamp_min(1e-30)
