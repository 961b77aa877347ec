"""TurboQuant of what the first stage leaves (keys before RoPE): float16 norms of all vectors, keys first, then packed codes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.turboquant import TurboCodes, TurboQuantizer
from spectralquant.errors import PacketError
from spectralquant.geometry import CacheGeometry

BITS = (2, 3, 4, 6)


def encode(residual: Tensor, bits: int) -> bytes:
    """Bytes of `residual: [2, T, L, Hk, D]`."""
    coded = TurboQuantizer(residual.shape[-1], bits).encode(residual.reshape(-1, residual.shape[-1]))
    return coded.norms.cpu().numpy().tobytes() + coded.codes.cpu().numpy().tobytes()


def decode(data: bytes | memoryview, bits: int, tokens: int, geometry: CacheGeometry) -> Tensor:
    """Inverse of `encode`, on the CPU.

    Raises:
        PacketError: an unknown number of bits, or another length than T tokens take.
    """
    g = geometry
    vectors, row = 2 * tokens * g.layers * g.kv_heads, -(-bits * g.head_dim // 8)
    if bits not in BITS or len(data) != vectors * (row + 2):
        raise PacketError("A block's TurboQuant stage has a wrong length or number of bits.")
    norms = torch.from_numpy(np.frombuffer(data, np.float16, vectors).copy())
    codes = torch.from_numpy(np.frombuffer(data, np.uint8, offset=2 * vectors).copy()).view(vectors, row)
    both = TurboQuantizer(g.head_dim, bits).decode(TurboCodes(codes, norms))
    return both.view(2, tokens, g.layers, g.kv_heads, g.head_dim)
