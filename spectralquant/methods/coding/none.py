"""`none`: blocks kept in float16, the baseline of every ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.methods.entry import MethodEntry


@dataclass(frozen=True)
class _Half:
    keys: Tensor
    values: Tensor

    @property
    def nbytes(self) -> int:
        return 2 * (self.keys.numel() + self.values.numel())


class Uncompressed:
    """Rounds to float16 and keeps everything: payload ratio 1."""

    name = "none"
    exact_bits = 16
    by_token = True

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def encode(self, block: KVBlock) -> _Half:
        return _Half(block.keys.half(), block.values.half())

    def decode(self, encoded: _Half) -> tuple[Tensor, Tensor]:
        return encoded.keys.float(), encoded.values.float()


METHOD = MethodEntry("none", "uncompressed (float16)", "", lambda context: Uncompressed())
