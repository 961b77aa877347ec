"""`SpectralQuantizer`: coefficients to integer symbols and back, with calibrated reconstruction points.

Uniform step, round to nearest. At low rates most non-zero symbols are ±1 and their mean lies inside the bin, so ±1
is reconstructed at its calibrated mean magnitude (method.md section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 2**30


class SpectralQuantizer:
    """Uniform quantizer for R components. centroid: float32 `[R]`, reconstruction of ±1 in steps (1 = midpoint)."""

    def __init__(self, centroid: Tensor) -> None:
        self.centroid = centroid

    def quantize(self, y: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Symbols int32 `[T, R]` of `y: [T, R]`, and whether a token can be coded; `step: [T]` in the units of y.

        It cannot where a coefficient is not finite or its symbol exceeds 2^30 (its block is then stored raw).
        """
        scaled = (y / step[:, None]).round_()
        good = (scaled.amax(1) < LIMIT) & (scaled.amin(1) > -LIMIT)  # neither holds of NaN
        return scaled.to(torch.int32), good

    def dequantize(self, symbols: Tensor, step: Tensor) -> Tensor:
        """Coefficients float32 `[T, R]` of symbols."""
        y = symbols.float()
        torch.where(symbols.abs() == 1, y * self.centroid, y, out=y)
        return y.mul_(step[:, None])
