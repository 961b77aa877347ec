"""The hot tier's quantizers head by head, as the kernels' `LinearCode`s, and the spectral index made from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectralquant.errors import ProfileError
from spectralquant.geometry import CacheGeometry
from spectralquant.profile.tensors import FixedTier, StoredBasis
from sqkernels.common import LinearCode, RowMatrices

INDEX_RANK = 16
INDEX_STEP = 0.335  # of a standard deviation: least error of 16 even steps on a Gaussian (Max 1960, table II)


def head_codes(tier: FixedTier, geometry: CacheGeometry, layer: int, kind: str) -> list[LinearCode]:
    """One `LinearCode` a key/value head of one layer's keys or values (rotated keys).

    Raises:
        ProfileError: the tier's bases are not per head, or its points not evenly spaced.
    """
    basis: StoredBasis = getattr(tier, kind)
    if basis.analysis.shape[1] != geometry.head_dim:
        raise ProfileError("The hot tier must have a basis per head. Calibrate the profile again (--tier hot).")
    bits, points = getattr(tier, f"{kind}_bits"), getattr(tier, f"{kind}_codebooks")
    dim, out = geometry.head_dim, []
    for head in range(layer * geometry.kv_heads, (layer + 1) * geometry.kv_heads):
        part = _rows(basis, head)
        low, step = _spacing(bits, points, part)
        mean = basis.mean[head * dim : (head + 1) * dim]
        encode = basis.analysis[part].float() * (basis.gain[part] / step)[:, None]
        synthesis = basis.synthesis[part].float() * basis.back[part][:, None]
        constant = mean + low @ synthesis
        out.append(LinearCode(bits[part], encode, -(encode @ mean) - low / step, synthesis * step[:, None], constant))
    return out


def index_codes(tier: FixedTier, geometry: CacheGeometry, layer: int, rank: int = INDEX_RANK) -> list[LinearCode]:
    """4-bit codes of the `rank` leading principal components of each head's rotated keys (method.md section 5).

    Their covariance is what the tier's basis keeps of it; heads with fewer components get empty ones.
    """
    basis, dim, out = tier.key, geometry.head_dim, []
    for head in range(layer * geometry.kv_heads, (layer + 1) * geometry.kv_heads):
        part = _rows(basis, head)
        synthesis = basis.synthesis[part].double() * basis.back[part].double()[:, None]
        _, deviation, components = torch.linalg.svd(synthesis, full_matrices=False)
        components, deviation = components[:rank].float(), deviation[:rank].float()
        kept = deviation > 1e-6 * deviation.max() if len(deviation) else deviation > 0
        components, step = components[kept], INDEX_STEP * deviation[kept]
        mean = basis.mean[head * dim : (head + 1) * dim]
        encode, decode = (torch.zeros(rank, dim, dtype=torch.float32) for _ in range(2))
        encode[: len(step)] = components / step[:, None]
        decode[: len(step)] = components * step[:, None]
        offset = 7.5 - encode @ mean
        out.append(
            LinearCode(torch.full((rank,), 4, dtype=torch.uint8), encode, offset, decode, mean - 7.5 * decode.sum(0))
        )
    return out


def row_matrices(
    tier: FixedTier,
    geometry: CacheGeometry,
    layers: Sequence[int],
    device: torch.device | str,
    index_rank: int = 0,
) -> RowMatrices:
    """Matrices for the kernels of the heads of some layers, layer after layer; index_rank 0: no index."""
    index = [c for layer in layers for c in index_codes(tier, geometry, layer, index_rank)] if index_rank else None
    keys, values = (
        [c for layer in layers for c in head_codes(tier, geometry, layer, kind)] for kind in ("key", "value")
    )
    return RowMatrices.build(keys, values, index, device=device)


def _rows(basis: StoredBasis, head: int) -> slice:
    ranks = basis.ranks
    start = int(ranks[:head].sum())
    return slice(start, start + int(ranks[head]))


def _spacing(bits: Tensor, points: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """First point and step of the components in `part`."""
    sizes = 2 ** bits.long()
    starts = (sizes.cumsum(0) - sizes)[part]
    low, last = points[starts], points[starts + sizes[part] - 1]
    step = (last - low) / (sizes[part] - 1)
    middle = points[starts + sizes[part] // 2] - low - step * (sizes[part] // 2)
    if bool((middle.abs() > 1e-3 * step).any()):
        raise ProfileError("The hot tier's points are not evenly spaced. Calibrate the profile again (--tier hot).")
    return low, step
