"""Keys and values of some tokens where a cache holds them, layer by layer, as fused decoding and encoding take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.codec.cold.features import TokenRows
from spectralquant.rotary import Rotation
from spectralquant.rotary_layout import HALVES
from sqkernels.spectral_rows import LayerTensors, TokenSlots, Turns

ALIGNED = 64


@dataclass(frozen=True)
class LayerSlots:
    """Keys and values of all layers, `slots` of N tokens in all of them, and how each layer turns its keys."""

    keys: LayerTensors
    values: LayerTensors
    slots: TokenSlots
    turns: Sequence[Turns | None]

    @classmethod
    def of(
        cls, keys: Sequence[Tensor], values: Sequence[Tensor], slots: TokenSlots, turns: Sequence[Turns | None]
    ) -> LayerSlots:
        """From one tensor of keys and one of values a layer."""
        return cls(LayerTensors(tuple(keys)), LayerTensors(tuple(values)), slots, turns)

    def part(self, first: int, last: int) -> LayerSlots:
        """Of tokens first … last."""
        shared: dict[int, Turns] = {}
        for t in self.turns:
            if t is not None and id(t) not in shared:
                shared[id(t)] = t.part(first, last)
        turns = [None if t is None else shared[id(t)] for t in self.turns]
        return LayerSlots(self.keys, self.values, self.slots.part(first, last), turns)

    def alike(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Runs of layers first … last that turn their keys alike."""
        start = first
        for layer in range(first + 1, last + 1):
            if layer == last or self.turns[layer] is not self.turns[start]:
                yield start, layer
                start = layer


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


def padded(tokens: int) -> int:
    """Tokens that products take in place of `tokens`: of numbers that no power of two divides they take several times as long."""
    return -(-tokens // ALIGNED) * ALIGNED


class Predictions:
    """What token ids predict, for any columns: float16 `[2, U + 1, columns]`, of tokens themselves and as predecessors."""

    def __init__(self, features: TokenRows) -> None:
        self.features = features.rows.half()
        self.rows = torch.stack([features.own, features.before]).int()

    def of(self, predictor: Tensor | None, columns: slice) -> Tensor:
        """Those of a predictor's columns; features come only of a profile whose two projectors predict."""
        assert predictor is not None
        both = predictor.view(2, -1, predictor.shape[1])[:, :, columns]
        return self.features @ both
