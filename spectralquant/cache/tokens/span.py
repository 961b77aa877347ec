"""`GroupSpan`: which tokens of a group of layers are held, and which of them are exact."""

from __future__ import annotations

from dataclasses import dataclass

from spectralquant.geometry import LayerGroup


@dataclass
class GroupSpan:
    """Shared by a group and its layers.

    kind: the layers by their place in the model, and their window. first: tokens that were let go because these layers
    cannot read them any more. recent_from: the first recent token. recording: nothing is let go until the next crop, so
    that assisted decoding can take tokens back.
    """

    kind: LayerGroup
    first: int = 0
    recent_from: int = 0
    recording: bool = False
