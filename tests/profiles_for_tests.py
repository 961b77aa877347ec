"""A cold-tier codec with random but consistent tensors, and random blocks for it."""

from __future__ import annotations

import functools

import torch

from spectralquant.calibration.cold.tables import cluster_tables, symbol_histogram
from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.geometry import CacheGeometry
from spectralquant.profile.tensors import ColdTier, StoredBasis, empty
from spectralquant.rotary import Rotation

GEOMETRY = CacheGeometry(layers=2, heads=4, kv_heads=2, head_dim=16, rotary=(True, False))
RANK = 40


def random_basis(seed: int) -> StoredBasis:
    """An orthonormal basis of RANK of 64 coordinates with unit gains and a mean."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(64, 64, generator=generator))
    rows = q[:RANK]
    return StoredBasis(
        rows.half(),
        rows.half(),
        torch.full((RANK,), 2.0),
        torch.full((RANK,), 0.5),
        torch.randn(64, generator=generator),
        torch.tensor([RANK]),
        torch.ones(RANK),
        torch.zeros(0, 64).half(),
    )


@functools.cache
def random_codec() -> SpectralCodec:
    """Tables fitted to unit Gaussians at half-unit steps."""
    generator = torch.Generator().manual_seed(0)
    symbols = (2 * torch.randn(2000, 2 * RANK, generator=generator)).round().int()
    histogram = symbol_histogram(symbols, torch.randint(0, 9, (2000,), generator=generator))
    choice, tables = cluster_tables(histogram, 16)
    tier = ColdTier(
        key=random_basis(1),
        value=random_basis(2),
        key_centroid=torch.ones(RANK),
        value_centroid=torch.ones(RANK),
        key_choice=choice[:, :RANK].contiguous(),
        value_choice=choice[:, RANK:].contiguous(),
        tables=tables,
        class_tables=torch.full((2, 9), 1 / 9),
        importance_weight=torch.zeros(2 * 4 + 2, 2),
        importance_bias=torch.zeros(2),
        embedding_projection=empty(),
    )
    return SpectralCodec(tier, GEOMETRY, None)


def random_block(seed: int, tokens: int, scale: float) -> KVBlock:
    """Gaussian keys and values, rotary tables for the first layer only."""
    generator = torch.Generator().manual_seed(seed)
    shape = (tokens, 2, 2, 16)
    angle = torch.rand(tokens, 8, generator=generator)
    return KVBlock(
        keys=scale * torch.randn(shape, generator=generator),
        values=scale * torch.randn(shape, generator=generator),
        start=4,
        received=torch.rand(tokens, 2, 4, generator=generator),
        rotations=(Rotation(angle.cos(), angle.sin()), None),
    )
