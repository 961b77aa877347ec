"""What an error of a token costs beside those of others: its squared loss gradient, head by head.

Bases weight directions by gradients averaged over tokens. What a quantizer of fixed width loses depends on the token as well:
values of attention sinks are small and alike, and much is read from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHARES = (0.5, 0.9)  # of keys' and of values' weights: KL of the hot tier on the built-in models, at 4 and 5.1 bits
MOST = 100.0


@dataclass(frozen=True)
class Importance:
    """weight: float32 `[groups, T]`, 1 on average. span: components of a group, group after group."""

    weight: Tensor
    span: int

    def of(self, components: Tensor) -> Tensor:
        """`[N, T]` of components (indices)."""
        return self.weight[components.to(self.weight.device) // self.span]

    @classmethod
    def together(cls, parts: Sequence[Importance]) -> Importance:
        """Of components one part after the other."""
        return cls(torch.cat([part.weight for part in parts]), parts[0].span)


def token_importance(gradients: Tensor, far: Tensor, synthesis: Sequence[Tensor], share: float) -> Tensor:
    """`[groups, T]`: for `share` the squared gradient, for the rest the same for all tokens; 1 on average.

    Gradients of single tokens are heavy-tailed and from few queries, so that they only weight, and within bounds; tokens that
    few queries read from afar have none and count as the average.

    Args:
        gradients: float32 `[T, P]`. far: bool `[T]` (see `SampleWindow`). synthesis: of each group `[p, r]`.
    """
    out, at = [], 0
    for back in synthesis:
        square = (gradients[:, at : at + len(back)] @ back).square().mean(1)
        at += len(back)
        mean = square[far].mean()
        known = far & (mean > 0)
        relative = torch.where(known, square / mean.clamp_min(1e-38), torch.ones_like(square)).clamp_max(MOST)
        weight = 1 - share + share * relative
        out.append(weight / weight.mean())
    return torch.stack(out)
