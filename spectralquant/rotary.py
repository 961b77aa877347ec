"""Rotary position embedding and its inverse.

Keys are coded before RoPE because RoPE spins their leading directions (method.md section 1, finding 3).
Source: Su et al. 2021, arXiv 2104.09864; the layouts are those of the `apply_rotary_pos_emb` functions in transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.rotary_layout import HALVES, RotaryLayout


@dataclass(frozen=True)
class Rotation:
    """cos and sin float32 `[T, F]` of one layer's tokens, each once, and which coordinates turn together."""

    cos: Tensor
    sin: Tensor
    pairs: str = HALVES

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor, layout: RotaryLayout) -> Rotation:
        """From a model's own tables `[T, n]`."""
        cos, sin = (layout.angles(x).float().contiguous() for x in (cos, sin))
        return cls(cos, -sin if layout.backwards else sin, layout.pairs)

    def part(self, tokens: slice | Tensor) -> Rotation:
        """Some of the tokens."""
        return Rotation(self.cos[tokens], self.sin[tokens], self.pairs)

    def to(self, device: torch.device | str) -> Rotation:
        """The same on a device."""
        return Rotation(self.cos.to(device), self.sin.to(device), self.pairs)

    def across(self, axes: int) -> Rotation:
        """For tensors with `axes` axes between tokens and coordinates."""
        shape = (self.cos.shape[0], *(1,) * axes, self.cos.shape[1])
        return Rotation(self.cos.view(shape), self.sin.view(shape), self.pairs)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First and second coordinate of each pair `[..., F]`, and the coordinates that are not rotated."""
        count = self.cos.shape[-1]
        head, tail = x[..., : 2 * count], x[..., 2 * count :]
        if self.pairs == HALVES:
            return head[..., :count], head[..., count:], tail
        return head[..., ::2], head[..., 1::2], tail

    def join(self, first: Tensor, second: Tensor, tail: Tensor) -> Tensor:
        """The inverse of `split`."""
        if self.pairs == HALVES:
            return torch.cat((first, second, tail) if tail.shape[-1] else (first, second), dim=-1)
        head = torch.stack((first, second), dim=-1).flatten(-2)
        return torch.cat((head, tail), dim=-1) if tail.shape[-1] else head


def apply_rope(x: Tensor, r: Rotation) -> Tensor:
    """Rotate `x: [..., T, D]`; with Dr < D the last D − Dr coordinates pass unchanged."""
    a, b, tail = r.split(x)
    return r.join(a * r.cos - b * r.sin, b * r.cos + a * r.sin, tail)


def undo_rope(x: Tensor, r: Rotation) -> Tensor:
    """Inverse of `apply_rope`, also where cos and sin carry a scale (YaRN, longrope: divided by its square)."""
    a, b, tail = r.split(x)
    scale = r.cos.square() + r.sin.square()
    return r.join((a * r.cos + b * r.sin) / scale, (b * r.cos - a * r.sin) / scale, tail)


def undo_rope_gradient(g: Tensor, r: Rotation) -> Tensor:
    """Map a gradient with respect to rotated keys to one with respect to unrotated keys (the transpose of RoPE)."""
    a, b, tail = r.split(g)
    return r.join(a * r.cos + b * r.sin, b * r.cos - a * r.sin, tail)
