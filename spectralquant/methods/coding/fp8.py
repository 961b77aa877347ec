"""`fp8`: 8-bit floating point (e4m3; Micikevicius et al. 2022, arXiv 2209.05433), keys after RoPE.

One float32 scale for every block, layer, head and kind, so that nothing saturates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import rotate_block_keys, unrotate_block_keys
from spectralquant.methods.entry import plain

E4M3_MAX = 448.0
SCALE_BYTES = 4


@dataclass(frozen=True)
class _Coded:
    codes: Tensor
    scale: Tensor
    block: KVBlock

    @property
    def nbytes(self) -> int:
        return self.codes.numel() + SCALE_BYTES * self.scale.numel()


@dataclass(frozen=True)
class Fp8:
    """A scale for every block, head and kind, so that nothing saturates."""

    name: ClassVar[str] = "fp8"
    exact_bits: ClassVar[int] = 16
    by_token: ClassVar[bool] = True

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def encode(self, block: KVBlock) -> _Coded:
        """Quantize a block."""
        both = torch.stack([rotate_block_keys(block, block.keys), block.values])
        scale = (both.abs().amax((1, 4), keepdim=True) / E4M3_MAX).clamp_min(1e-12)
        return _Coded((both / scale).to(torch.float8_e4m3fn), scale, block)

    def decode(self, encoded: _Coded) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values."""
        keys, values = encoded.codes.float() * encoded.scale
        return unrotate_block_keys(encoded.block, keys), values


METHOD = plain(Fp8, "8-bit floating point", "arXiv 2209.05433")
