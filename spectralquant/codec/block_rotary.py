"""RoPE on whole blocks, for codecs that work on keys as the cache holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from spectralquant.codec.rotary import apply_rope, undo_rope


class RotaryBlock(Protocol):
    """Anything with per-layer rotary tables `[T, Dr]` (None for layers without RoPE)."""

    cos: Sequence[Tensor | None]
    sin: Sequence[Tensor | None]


def rotate_block_keys(block: RotaryBlock, keys: Tensor) -> Tensor:
    """Keys `[T, L, Hk, D]` after RoPE."""
    return _per_layer(block, keys, apply_rope)


def unrotate_block_keys(block: RotaryBlock, keys: Tensor) -> Tensor:
    """Keys `[T, L, Hk, D]` before RoPE."""
    return _per_layer(block, keys, undo_rope)


def _per_layer(block: RotaryBlock, keys: Tensor, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    if all(c is block.cos[0] for c in block.cos) and all(s is block.sin[0] for s in block.sin):
        cos, sin = block.cos[0], block.sin[0]
        return keys if cos is None else function(keys, cos[:, None, None], sin[:, None, None])
    layers = keys.permute(1, 2, 0, 3)
    out = [k if c is None else function(k, c, s) for k, c, s in zip(layers, block.cos, block.sin, strict=True)]
    return torch.stack(out).permute(2, 0, 1, 3)
