"""RoPE on whole blocks, for codecs that work on keys as the cache holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from spectralquant.rotary import Rotation, apply_rope, undo_rope


class RotaryBlock(Protocol):
    """Anything with a rotation of its T tokens for every layer (None for layers without RoPE)."""

    @property
    def rotations(self) -> Sequence[Rotation | None]: ...


def rotate_keys(rotations: Sequence[Rotation | None], keys: Tensor) -> Tensor:
    """Keys `[T, L, Hk, D]` after RoPE, given each layer's rotation."""
    return _per_layer(rotations, keys, apply_rope)


def unrotate_keys(rotations: Sequence[Rotation | None], keys: Tensor) -> Tensor:
    """Keys `[T, L, Hk, D]` before RoPE."""
    return _per_layer(rotations, keys, undo_rope)


def rotate_block_keys(block: RotaryBlock, keys: Tensor) -> Tensor:
    """Keys `[T, L, Hk, D]` of a block after RoPE."""
    return rotate_keys(block.rotations, keys)


def unrotate_block_keys(block: RotaryBlock, keys: Tensor) -> Tensor:
    """Keys `[T, L, Hk, D]` of a block before RoPE."""
    return unrotate_keys(block.rotations, keys)


def _per_layer(
    rotations: Sequence[Rotation | None], keys: Tensor, function: Callable[[Tensor, Rotation], Tensor]
) -> Tensor:
    if all(r is rotations[0] for r in rotations):
        return keys if rotations[0] is None else function(keys, rotations[0].across(2))
    layers = keys.permute(1, 2, 0, 3)
    out = [k if r is None else function(k, r) for k, r in zip(layers, rotations, strict=True)]
    return torch.stack(out).permute(2, 0, 1, 3)
