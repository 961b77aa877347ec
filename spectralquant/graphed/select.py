"""What part of the coded tokens the steps of a `GraphedModel` read, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from spectralquant.errors import InputError
from spectralquant.geometry import CacheGeometry

Select = float | int | None


def by_layer(select: Select | Sequence[Select], geometry: CacheGeometry) -> tuple[Select, ...]:
    """A share (float) or number (int) for each layer that reads everything, None where all of it is read.

    Raises:
        InputError: not one part in all, nor one a layer; or a part that is none.
    """
    layers = sum(len(kind.layers) for kind in geometry.groups if kind.window is None)
    parts = tuple(select) if isinstance(select, Sequence) else (select,) * layers
    if len(parts) != layers:
        raise InputError(f"select has {len(parts)} parts, and {layers} layers of this model read everything: one each.")
    for part in parts:
        if part is not None and not (0 < part <= 1 if isinstance(part, float) else part > 0):
            raise InputError(f"select={part} must be a share of the coded tokens (0.08) or a positive number of them.")
    return tuple(None if part == 1.0 and isinstance(part, float) else part for part in parts)
