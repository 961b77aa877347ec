"""`spectral`: our own codec as a method, one class a kind of tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.fixed import FixedBlock, FixedRateCodec
from spectralquant.codec.packet import INDEX_ENTRY
from spectralquant.codec.spectral import SpectralCodec


@dataclass(frozen=True)
class _Bytes:
    data: bytes

    @property
    def nbytes(self) -> int:
        return len(self.data) + INDEX_ENTRY.size


class SpectralCold:
    """Cold tier: real entropy-coded bytes, index entry and checksum included."""

    name = "spectral"

    def __init__(self, codec: SpectralCodec, exact_bits: int = 16, **options: Any) -> None:
        self.codec = codec
        self.exact_bits = exact_bits
        self.options = {"tier": "cold", "exact_bits": exact_bits, **options}

    def encode(self, block: KVBlock) -> _Bytes:
        return _Bytes(self.codec.encode(block))

    def decode(self, encoded: _Bytes) -> tuple[Tensor, Tensor]:
        return self.codec.decode(encoded.data)


class SpectralFixed:
    """Warm or hot tier: packed fixed-rate codes."""

    name = "spectral"
    exact_bits = 16

    def __init__(self, codec: FixedRateCodec, **options: Any) -> None:
        self.codec = codec
        self.options = {"tier": "hot" if codec.rotated else "warm", **options}

    def encode(self, block: KVBlock) -> FixedBlock:
        return self.codec.encode(block)

    def decode(self, encoded: FixedBlock) -> tuple[Tensor, Tensor]:
        return self.codec.decode(encoded)
