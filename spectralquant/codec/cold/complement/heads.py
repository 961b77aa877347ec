"""`WeightedHeads`: every head's complete basis in the metric of the loss; in which what a block's code leaves is measured and coded.

The code across layers keeps only the components that its calibration text used. A head's own basis `[D, D]` is complete,
small and in every profile (`heads.*`): no residual, of whatever text, lies outside it. Coefficients are in units of the
cold tier's base step, so an error costs what it costs in the first stage, up to what heads have in common. That part is left
out on purpose: which errors in different layers cancel is a matter of the calibration text, and other text does not keep
to it (measured: the metric over all layers sees a German text's errors as it sees an English one's, at seven times the KL).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.geometry import CacheGeometry
from spectralquant.profile.tensors import HeadSpectra


class WeightedHeads:
    """Analysis and synthesis of H = 2·L·Hk heads (keys first). step: the cold tier's base step in the metric."""

    def __init__(self, heads: HeadSpectra, step: float, geometry: CacheGeometry, device: torch.device | str) -> None:
        self.geometry = geometry
        analysis = heads.basis.double() * (heads.gain.double() / step)[..., None]
        self.analysis = analysis.float().flatten(0, 2).to(device)
        self.synthesis = torch.linalg.inv(analysis).float().to(device)

    @property
    def count(self) -> int:
        """H."""
        return len(self.analysis)

    @property
    def rows(self) -> int:
        """H·D, components of all heads."""
        return self.count * self.geometry.head_dim

    def project(self, keys: Tensor, values: Tensor) -> Tensor:
        """Coefficients `[H, D, T]` of keys and values (or of what is left of them) `[T, L, Hk, D]`."""
        both = torch.stack([keys, values]).to(self.analysis)
        return self.analysis @ both.permute(0, 2, 3, 4, 1).flatten(0, 2)

    def kind_steps(self, steps: Tensor) -> Tensor:
        """Steps `[T, 2]` (keys, values) as `[H, 1, T]`."""
        return steps.T.repeat_interleave(self.count // 2, dim=0)[:, None]

    @staticmethod
    def error(y: Tensor) -> float:
        """What errors with coefficients `y: [H, D, T]` cost a token, in squared base steps."""
        return float(y.square().sum(dtype=torch.float64)) / max(1, y.shape[2])
