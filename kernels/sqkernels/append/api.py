"""Checked entry point of appending a token."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.append import reference
from sqkernels.common import runtime


def append(
    keys: Tensor, values: Tensor, places: Tensor, key_room: Tensor, value_room: Tensor, *, backend: str = "auto"
) -> None:
    """Write one token a sequence into buffers of E places; token n of a ring goes to place n mod E.

    Args:
        keys, values: `[B, Hk, 1, D]`, in any strides. places: int64 `[B]`, on the device.
        key_room, value_room: `[B, Hk, E, D]`, contiguous, of the same dtype; written in place.
        backend: auto (Triton on CUDA, else the reference), triton or reference.

    Raises:
        ValueError: shapes or dtypes disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    batch, heads, _, dim = key_room.shape
    rooms = key_room.shape == value_room.shape and key_room.is_contiguous() and value_room.is_contiguous()
    new = keys.shape == values.shape == (batch, heads, 1, dim) and places.shape == (batch,)
    kinds = keys.dtype == values.dtype == key_room.dtype == value_room.dtype and places.dtype == torch.int64
    if not (rooms and new and kinds):
        raise ValueError(
            f"keys {tuple(keys.shape)} {keys.dtype}, values {tuple(values.shape)} {values.dtype}, places "
            f"{tuple(places.shape)} {places.dtype} and buffers {tuple(key_room.shape)}, {tuple(value_room.shape)} "
            f"{key_room.dtype} disagree: they must be [B, Hk, 1, D] twice, int64 [B] and contiguous [B, Hk, E, D] twice"
        )
    if runtime.choose(backend, key_room.device) == "reference":
        return reference.append(keys, values, places, key_room, value_room)
    from sqkernels.append.triton import launch

    return launch(keys, values, places, key_room, value_room)
