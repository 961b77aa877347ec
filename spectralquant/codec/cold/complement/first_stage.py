"""What the second stage asks of the first: the part of `SpectralCodec` that it calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold.coefficients import BlockCoefficients
from spectralquant.codec.cold.complement.coder import ComplementCoder
from spectralquant.codec.cold.complement.heads import WeightedHeads
from spectralquant.codec.cold.entropy import CodedSymbols, EntropyCoder
from spectralquant.codec.cold.features import TokenRows
from spectralquant.codec.cold.projected import Projected, QuantizedRun
from spectralquant.geometry import CacheGeometry


class FirstStage(Protocol):
    """See `SpectralCodec`, which is one."""

    geometry: CacheGeometry
    device: torch.device
    step_scale: float
    adaptive_tables: bool
    coder: EntropyCoder
    heads: WeightedHeads | None
    errors: deque[Any]

    @property
    def complement(self) -> ComplementCoder: ...

    @property
    def complement_heads(self) -> WeightedHeads: ...

    def projected(self, blocks: Sequence[KVBlock]) -> Projected: ...

    def symbols(self, projected: Projected, classes: Tensor, steps: Tensor) -> QuantizedRun: ...

    def coded(self, blocks: Sequence[KVBlock], run: QuantizedRun) -> list[bytes]: ...

    def dequantize(self, symbols: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]: ...

    def reconstructed(self, symbols: Tensor, steps: Tensor, features: TokenRows | None) -> tuple[Tensor, Tensor]: ...

    def dequantized(self, coded: CodedSymbols, scale: float = 1.0) -> BlockCoefficients: ...

    def ids(self, block: KVBlock) -> tuple[int, np.ndarray] | None: ...

    def raw(self, block: KVBlock) -> bytes: ...
