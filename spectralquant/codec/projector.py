"""`SpectralProjector`: keys or values of all layers to spectral coefficients and back, group by group.

y = A(x − μ − f·W), x̂ = S ŷ + μ + f·W, where f are token features (method.md section 2; W is our addition). Rows of A
and columns of S are kept with unit norm in half precision and a float32 gain each, so half precision costs nothing
visible at these rates. Coefficients are in units of the profile's base step: rounding them is the quantizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.profile_tensors import StoredBasis


class SpectralProjector:
    """Float32 analysis and synthesis on one device."""

    def __init__(self, tensors: StoredBasis, device: torch.device | str = "cpu") -> None:
        self.analysis = tensors.analysis.to(device, torch.float32)
        self.synthesis = tensors.synthesis.to(device, torch.float32) * tensors.back.to(device)[:, None]
        self.gain = tensors.gain.to(device)
        self.mean = tensors.mean.to(device)
        self.predictor = tensors.predictor.to(device, torch.float32) if len(tensors.predictor) else None
        self.ranks = tensors.ranks.tolist()
        self.span = self.analysis.shape[1]

    @property
    def rank(self) -> int:
        """R, kept components over all groups."""
        return self.analysis.shape[0]

    def project(self, x: Tensor, features: Tensor | None) -> Tensor:
        """Coefficients `[T, R]`, in units of the base step, of `x: [T, P]` with token features `[T, F]`."""
        return self._each_group(x - self._base(features), self.analysis, forward=True) * self.gain

    def reconstruct(self, y: Tensor, features: Tensor | None) -> Tensor:
        """Coordinates `[T, P]` of coefficients `y: [T, R]`."""
        return self._each_group(y, self.synthesis, forward=False) + self._base(features)

    def columns(self, y: Tensor, features: Tensor | None, start: int, stop: int) -> Tensor:
        """`reconstruct` for coordinates start … stop alone, which must lie in one group: `[T, stop − start]`.

        `y` is `[T, R]`, or `[T, rank of the group]` with the group's own coefficients.
        """
        group = start // self.span
        rows = slice(sum(self.ranks[:group]), sum(self.ranks[: group + 1]))
        matrix = self.synthesis[rows, start - group * self.span : stop - group * self.span]
        own = y if y.shape[1] == rows.stop - rows.start else y[:, rows]
        out = torch.addmm(self.mean[start:stop], own.float(), matrix)
        if self.predictor is None:
            return out
        return out.addmm_(features, self.predictor[:, start:stop])

    def _base(self, features: Tensor | None) -> Tensor:
        if self.predictor is None:
            return self.mean
        if features is None:
            raise ValueError("this profile predicts from token ids, but the block carries none")
        return torch.addmm(self.mean, features.to(self.predictor.device), self.predictor)

    def _each_group(self, x: Tensor, rows: Tensor, *, forward: bool) -> Tensor:
        if len(self.ranks) == 1:
            return x @ rows.T if forward else x @ rows
        out, at = [], 0
        for i, rank in enumerate(self.ranks):
            part = rows[at : at + rank]
            out.append(x[:, i * self.span : (i + 1) * self.span] @ part.T if forward else x[:, at : at + rank] @ part)
            at += rank
        return torch.cat(out, dim=1)
