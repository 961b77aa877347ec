"""Keys and values of some tokens where a cache holds them, layer by layer, as fused decoding and encoding take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from spectralquant.codec.cold.features import TokenProducts
from spectralquant.rotary import HALVES, Rotation
from sqkernels.spectral_rows import TokenSlots, Turns


@dataclass(frozen=True)
class LayerSlots:
    """One tensor of keys and one of values a layer, `slots` of N tokens in all of them, and how each layer turns its keys."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    slots: TokenSlots
    turns: Sequence[Turns | None]

    def part(self, first: int, last: int) -> LayerSlots:
        """Of tokens first … last."""
        shared: dict[int, Turns] = {}
        for t in self.turns:
            if t is not None and id(t) not in shared:
                shared[id(t)] = t.part(first, last)
        turns = [None if t is None else shared[id(t)] for t in self.turns]
        return LayerSlots(self.keys, self.values, self.slots.part(first, last), turns)


def turns_of(rotations: Sequence[Rotation | None]) -> list[Turns | None]:
    """Layers' rotations as kernels take them; what layers share stays shared."""
    shared: dict[int, Turns] = {}
    for r in rotations:
        if r is not None and id(r) not in shared:
            shared[id(r)] = Turns(r.cos.contiguous(), r.sin.contiguous(), r.pairs != HALVES)
    return [None if r is None else shared[id(r)] for r in rotations]


def groups_of(ranks: Sequence[int], span: int, columns: slice) -> Iterator[tuple[slice, slice, int]]:
    """Groups of coordinates that `columns` touch: rows of the basis, the group's own columns among them, and where
    among `columns` those begin."""
    start = 0
    for i, rank in enumerate(ranks):
        first, last = max(columns.start, i * span), min(columns.stop, (i + 1) * span)
        if first < last:
            yield slice(start, start + rank), slice(first - i * span, last - i * span), first - columns.start
        start += rank


def layer_predictions(products: TokenProducts | None, at: int, width: int) -> tuple[Tensor, Tensor] | None:
    """The columns of one layer, `width` from `at` on."""
    if products is None:
        return None
    return products.as_own[:, at : at + width], products.as_before[:, at : at + width]
