"""`layered`: spectral base and TurboQuant enhancement (see `codec.residual`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.packet import INDEX_ENTRY
from spectralquant.codec.residual import TurboQuantResidual


@dataclass(frozen=True)
class _Coded:
    data: bytes
    block: KVBlock

    @property
    def nbytes(self) -> int:
        return len(self.data) + INDEX_ENTRY.size


class Layered:
    """Each block in the mode the codec was told to use, or the one of least error."""

    name = "layered"
    exact_bits = 16

    def __init__(self, codec: TurboQuantResidual) -> None:
        self.codec = codec
        self.options: dict[str, Any] = {"bits": codec.turbo.bits, "mode": codec.mode}

    def encode(self, block: KVBlock) -> _Coded:
        return _Coded(self.codec.encode(block), block)

    def decode(self, encoded: _Coded) -> tuple[Tensor, Tensor]:
        return self.codec.decode(encoded.data, encoded.block)
