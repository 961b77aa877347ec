"""`turboquant`: every key (after RoPE) and value vector by random rotation and Lloyd–Max codes (arXiv 2504.19874)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import rotate_block_keys, unrotate_block_keys
from spectralquant.codec.turboquant import TurboCodes, TurboQuantizer


@dataclass(frozen=True)
class _Coded:
    codes: TurboCodes
    block: KVBlock
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes


class TurboQuant:
    """The MSE variant at a whole number of bits per coordinate, plus 16 bits of norm a vector."""

    name = "turboquant"
    exact_bits = 16

    def __init__(self, head_dim: int, bits: int = 4, seed: int = 0) -> None:
        self.quantizer = TurboQuantizer(head_dim, bits, seed)
        self.options: dict[str, Any] = {"bits": bits}

    def encode(self, block: KVBlock) -> _Coded:
        both = torch.stack([rotate_block_keys(block, block.keys), block.values])
        return _Coded(self.quantizer.encode(both.reshape(-1, both.shape[-1])), block, tuple(both.shape))

    def decode(self, encoded: _Coded) -> tuple[Tensor, Tensor]:
        keys, values = self.quantizer.decode(encoded.codes).view(encoded.shape)
        return unrotate_block_keys(encoded.block, keys), values
