"""Even bits for the hot tier: components of 0, 4 or 8 bits, with equally many planes of four bits in all heads of a layer.

Kernels unpack planes of four bits fastest, and a launch takes as long as its widest head. Every head still gives its planes to
the components that gain most, and layers, keys and values get as many as they gain from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.codec.fixed.mask import FrequencyMask

PARTS = 2  # heads have a multiple of D / 2 planes: finer steps lose no less (KL on the built-in models), and fill units less


@dataclass(frozen=True)
class Even:
    """dim: components of a head. heads: of a layer, which get equally many planes."""

    dim: int
    heads: int


def even_mask(gains: Tensor, heads: int, bits_per_component: float) -> FrequencyMask:
    """The mask of least distortion with at most so many bits a component on average.

    Args:
        gains: `[heads of all layers, 2·D]`: by how much a component's first plane lowers the distortion (D of them), then its
            second. heads: of a layer, which get equally many; they lie one after the other.
    """
    count, twice = gains.shape
    ordered, order = gains.double().sort(dim=1, descending=True)
    total = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))
    planes = torch.arange(0, twice + 1, max(1, twice // (2 * PARTS)), device=gains.device)
    by_layer = total[:, planes].unflatten(0, (-1, heads)).sum(1)
    budget = bits_per_component * count * twice / 8
    low, high = -120.0, 120.0
    for _ in range(100):
        middle = (low + high) / 2
        choice = _choose(by_layer, planes, heads, middle)
        low, high = (middle, high) if heads * planes[choice].sum() > budget else (low, middle)
    most = planes[_choose(by_layer, planes, heads, high)].repeat_interleave(heads)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(twice, device=gains.device).expand(count, -1))
    taken = (rank < most[:, None]).unflatten(1, (2, -1)).sum(1)
    return FrequencyMask((4 * taken).flatten().to(torch.uint8).cpu())


def _choose(by_layer: Tensor, planes: Tensor, heads: int, exponent: float) -> Tensor:
    """For every layer the number of planes with the most gain less their price, as an index into `planes`."""
    return (by_layer - 2.0**exponent * heads * planes).argmax(1)
