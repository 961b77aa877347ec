"""The same in torch."""

from __future__ import annotations

from torch import Tensor


def append(keys: Tensor, values: Tensor, places: Tensor, key_room: Tensor, value_room: Tensor) -> None:
    """See `api.append`."""
    at = (places.long() % key_room.shape[2]).view(-1, 1, 1, 1).expand_as(keys)
    key_room.scatter_(2, at, keys)
    value_room.scatter_(2, at, values)
