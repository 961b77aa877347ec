"""Rounding for rate and distortion: a symbol goes one towards zero where that saves more bits than it costs error.

Rounding to the nearest symbol is best for the error alone. Symbols of thousands of components cost very different
numbers of bits, though: a ±1 of a component that is nearly always 0 takes ten, its error at most a quarter of a squared
step. So every symbol is chosen by error + price · bits, with the bits that the coder's own tables charge. Only encoders
do this; packets are as before. Source: entropy-constrained scalar quantization (Sullivan 1996, IEEE Trans. Inf. Theory
42-5), as video encoders do it.
"""

from __future__ import annotations

import torch
from torch import Tensor

PRICE = 0.12
HALF = 32
PASSES = 2


def cheaper_symbols(q: Tensor, y: Tensor, table: Tensor, centroid: Tensor, bits: Tensor, price: float) -> Tensor:
    """Symbols int32 `[M]` like `q`, none further from zero.

    q: symbols that are not zero; y: what they stand for, in steps; table, centroid: of their components (and classes),
    the latter being where ±1 is reconstructed. bits: `[K, 64]`, what a table charges for values −32 … 31 (clipped).
    price: squared steps that a bit is worth.
    """
    lower = q - q.sign()
    return torch.where(
        _cost(lower, y, table, centroid, bits, price) < _cost(q, y, table, centroid, bits, price), lower, q
    )


def _cost(q: Tensor, y: Tensor, table: Tensor, centroid: Tensor, bits: Tensor, price: float) -> Tensor:
    value = torch.where(q.abs() == 1, q * centroid, q.to(centroid.dtype))
    place = q.clamp(-HALF, HALF - 1) + HALF
    return (y - value).square() + price * bits.reshape(-1)[table.long() * (2 * HALF) + place]
