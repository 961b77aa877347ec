"""`GroupedMethod`: a method on a model whose layers do not read equally far back, which codes each group of layers apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spectralquant.geometry import BLOCK, CacheGeometry
from spectralquant.methods.base import AnyMethod, Method

Layers = tuple[int, ...]


class GroupedMethod:
    """One codec a group of layers, all with the same options; `for_layers` gives a group's."""

    def __init__(self, parts: dict[Layers, Method]) -> None:
        first = next(iter(parts.values()))
        self.name, self.options, self.exact_bits, self.parts = first.name, first.options, first.exact_bits, parts
        self.sums_per_token: int = getattr(first, "sums_per_token", 0)

    def for_layers(self, layers: Layers) -> Method:
        """The codec of a group."""
        return self.parts[layers]


def coded_layers(geometry: CacheGeometry) -> list[Layers]:
    """Groups of layers that are coded where a window of one block stays exact, which is what every comparison does."""
    return [group.layers for group in geometry.coded_groups(2 * BLOCK)]


def grouped(geometry: CacheGeometry, build: Callable[[Layers, CacheGeometry], Method]) -> Any:
    """The method that `build(layers, geometry of those layers)` makes for each coded group; itself where that is one of all."""
    layers = coded_layers(geometry)
    if layers == [tuple(range(geometry.layers))]:
        return build(layers[0], geometry)
    return GroupedMethod({each: build(each, geometry.part(each)) for each in layers})


def part_of(method: AnyMethod, layers: Sequence[int]) -> Any:
    """What codes a group's layers: a grouped method's part, else the method, which takes blocks of any number of layers."""
    return method.for_layers(tuple(layers)) if hasattr(method, "for_layers") else method
