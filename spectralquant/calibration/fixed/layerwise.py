"""Fixed-rate tiers whose layers all take equally many bits: a serving engine's pages are equally long in all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectralquant.calibration.fixed.fit import FixedFitter


class LayerwiseFixedFitter(FixedFitter):
    """A fixed-rate fitter of a tier read in place, each of whose layers meets the target alone. layers: L."""

    def __init__(self, *arguments: Any, layers: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.components = layer_components([s.shape[1] for s in self.samples], layers)
        self.generators = [self.generator.part(index) for index in self.components]

    def bits(self, bits_per_scalar: float) -> Tensor:
        """See `FixedFitter.bits`."""
        out = torch.zeros(sum(len(index) for index in self.components), dtype=torch.uint8)
        for index, generator in zip(self.components, self.generators, strict=True):
            out[index] = generator.generate(bits_per_scalar).bits
        return out


def layer_components(widths: Sequence[int], layers: int) -> list[Tensor]:
    """Of each layer, the indices of its keys' and values' components among all keys' and then all values'."""
    key, value = (width // layers for width in widths)
    return [
        torch.cat([torch.arange(i * key, (i + 1) * key), widths[0] + torch.arange(i * value, (i + 1) * value)])
        for i in range(layers)
    ]
