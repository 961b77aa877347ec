"""What symbols are: the alphabet of the cold tier's tables, and the shifts that blocks with adaptive tables choose from."""

from __future__ import annotations

SPAN = 15
ALPHABET = 2 * SPAN + 2
ESCAPE = ALPHABET - 1
SHIFTS = (-48, -32, -20, -10, -4, 0, 4, 10, 20, 32, 48)
SHIFT_GROUP = 16
NO_SHIFT = SHIFTS.index(0)


def groups(rank: int) -> int:
    """Groups of components that shift together."""
    return -(-rank // SHIFT_GROUP)
