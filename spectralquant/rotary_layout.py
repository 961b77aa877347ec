"""`RotaryLayout`: how a model's rotary embedding pairs coordinates. Named without torch, so that options can be checked at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HALVES, NEIGHBOURS, ONCE = "halves", "neighbours", "once"


@dataclass(frozen=True)
class RotaryLayout:
    """How a model rotates the first Dr of D coordinates, F = Dr / 2 angles a token.

    pairs: which coordinates turn together: (i, i + F) for "halves" (Llama), (2i, 2i + 1) for "neighbours" (Cohere).
    table: how the model's cos and sin hold the F angles: twice in a row ("halves"), each doubled ("neighbours"), "once".
    backwards: the second coordinate turns to the first (nanochat), not the first to the second.
    """

    pairs: str = HALVES
    table: str = HALVES
    backwards: bool = False

    def angles(self, table: Tensor) -> Tensor:
        """The F columns of a model's cos or sin `[..., n]`."""
        if self.table == ONCE:
            return table
        return table[..., : table.shape[-1] // 2] if self.table == HALVES else table[..., ::2]


LAYOUTS = tuple(
    RotaryLayout(pairs, table, backwards)
    for backwards in (False, True)
    for table in (HALVES, NEIGHBOURS, ONCE)
    for pairs in (HALVES, NEIGHBOURS)
)
