"""Rotary position embedding and its inverse.

Keys are coded before RoPE because RoPE spins their leading directions (method.md section 1, finding 3).
Source: Su et al. 2021, arXiv 2104.09864; the half-split layout is the one of transformers' `apply_rotary_pos_emb`.
"""

from __future__ import annotations

from torch import Tensor, cat


def rotate_half(x: Tensor) -> Tensor:
    """Map the halves ``(a, b)`` of the last dimension to ``(-b, a)``."""
    half = x.shape[-1] // 2
    return cat((-x[..., half:], x[..., :half]), dim=-1)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `x: [..., T, D]` by `cos, sin: [..., T, Dr]`; with Dr < D the last D − Dr coordinates pass unchanged."""
    rotated = cos.shape[-1]
    head, tail = x[..., :rotated], x[..., rotated:]
    head = head * cos + rotate_half(head) * sin
    return cat((head, tail), dim=-1) if tail.shape[-1] else head


def undo_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Inverse of `apply_rope`, also where cos and sin carry a scale (YaRN, longrope: divided by its square)."""
    rotated = cos.shape[-1]
    head, tail = x[..., :rotated], x[..., rotated:]
    head = (head * cos - rotate_half(head) * sin) / (cos.square() + sin.square())
    return cat((head, tail), dim=-1) if tail.shape[-1] else head


def undo_rope_gradient(g: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Map a gradient with respect to rotated keys to one with respect to unrotated keys (the transpose of RoPE)."""
    rotated = cos.shape[-1]
    head, tail = g[..., :rotated], g[..., rotated:]
    head = head * cos - rotate_half(head) * sin
    return cat((head, tail), dim=-1) if tail.shape[-1] else head
