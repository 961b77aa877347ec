"""`OutsideSketch`: how much of keys and values lies outside of the first stage's basis, without multiplying them back.

What the basis drops of x is (I − S·A)x, and its squared length in the metric of the heads is that of `heads · (I − S·A)x`.
As many random combinations of these coordinates as a sketch has rows keep that length: on average exactly, of one token to
a fifth (Johnson & Lindenstrauss 1984). All of it is one matrix of a few rows beside those of the basis.
"""

from __future__ import annotations

import torch

from spectralquant.codec.cold.complement.heads import WeightedHeads
from spectralquant.codec.projector import Sketch, SpectralProjector

ROWS = 64
SEED = 1


class OutsideSketch:
    """Sketches of 64 rows, of keys (0) and values (1), for the projectors of a codec."""

    def __init__(self, projectors: tuple[SpectralProjector, ...], heads: WeightedHeads) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.sketches: list[Sketch] = []
        for projector, analysis in zip(projectors, heads.analysis.chunk(2), strict=True):
            count, dim = analysis.shape[0], analysis.shape[1]
            random = torch.randn(count, ROWS, dim, generator=generator, dtype=torch.float32).to(analysis)
            seen = (random @ analysis).transpose(0, 1).reshape(ROWS, count * dim) * ROWS**-0.5
            self.sketches.append(projector.outside(seen))
