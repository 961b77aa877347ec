"""Launches of the preparation and the reduction, which dense and index decode share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sqkernels.common.launch import LayoutArguments, bucket, next_power
from sqkernels.common.runtime import overlap

LOG2E = 1.4426950408889634
COLUMNS = 32
PART_TOKENS = 64
EXACT_BLOCK = 32
MAX_PARTS = 32
FEW_ROWS = 256
REDUCE_COLUMNS = 32
REDUCE_TILE = 128 * 32


@dataclass(frozen=True)
class Prepared:
    """What the preparation leaves for the other kernels; see `prepare_role`."""

    latents: Tensor
    constant: Tensor
    part_exact: Tensor
    stats_exact: Tensor


@dataclass(frozen=True)
class Preparation:
    """Arguments of the preparation, and where it writes. roles: programs a key/value head."""

    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    roles: int
    out: Prepared

    @classmethod
    def of(
        cls,
        query: Tensor,
        key: tuple[Tensor, Tensor],
        exact: tuple[Tensor, Tensor, Tensor, Tensor],
        window: Tensor | None,
        scaling: float,
        a: LayoutArguments,
    ) -> Preparation:
        """key: (decode, constant). exact: sink keys and values, window keys and values."""
        batch, heads, dim = query.shape
        rows, group, tokens = batch * a.heads, heads // a.heads, exact[2].shape[2]
        part_tokens = PART_TOKENS * max(1, -(-tokens // (PART_TOKENS * MAX_PARTS)))
        parts = max(1, -(-tokens // part_tokens))
        new = query.new_empty
        out = Prepared(
            new(rows, 16, a.key_planes, dtype=torch.float16),
            new(rows, 16, dtype=torch.float32),
            new(rows, parts, group, dim, dtype=torch.float32),
            new(rows, parts, 32, dtype=torch.float32),
        )
        arguments = (
            *key,
            *exact,
            out.constant if window is None else window,
            *(out.latents, out.constant, out.part_exact, out.stats_exact),
            *(scaling * LOG2E, exact[0].shape[2], tokens, part_tokens),
        )
        constants = {
            "HK": a.heads,
            "G": group,
            "D": dim,
            "DP": next_power(dim),
            "PLANES": a.key_planes,
            "COLUMNS": COLUMNS,
            "RAGGED": window is not None,
            "PARTS": parts,
            "BLOCK": EXACT_BLOCK,
        }
        return cls(arguments, constants, parts + a.key_planes // COLUMNS, out)

    def run(self, query: Tensor, overlapping: bool) -> Prepared:
        """The preparation by itself."""
        from sqkernels.spectral_decode.triton import prepare_kernel

        rows = self.out.constant.shape[0]
        prepare_kernel[(rows, self.roles)](
            query, *self.arguments, **self.constants, **overlap(query.device, overlapping), num_warps=4
        )
        return self.out


def row_count(group: int) -> int:
    """Query rows of a matrix product that holds a group."""
    return 8 if group <= 8 else 16


def reduce(
    part: Tensor, stats: Tensor, prepared: Prepared, value: tuple[Tensor, Tensor], query: Tensor, overlapping: bool
) -> Tensor:
    """Merge everything: `[B, H, D]` like `query`. value: (decode, constant)."""
    from sqkernels.spectral_decode.triton import reduce_kernel

    out = torch.empty_like(query)
    batch, heads, dim = query.shape
    _, splits, group, planes = part.shape
    parts = prepared.part_exact.shape[1]
    columns = REDUCE_COLUMNS if batch * heads < FEW_ROWS else next_power(dim)
    reduce_kernel[(batch * heads, -(-dim // columns))](
        part,
        stats,
        prepared.part_exact,
        prepared.stats_exact,
        *value,
        out,
        splits,
        HK=heads // group,
        G=group,
        D=dim,
        SP=bucket(splits),
        PARTS=parts,
        PARTS_P=next_power(parts),
        PLANES=planes,
        PLANES_P=next_power(planes),
        COLUMNS=columns,
        CHUNK=min(REDUCE_TILE // columns, bucket(splits)),
        **overlap(query.device, overlapping),
        num_warps=4,
    )
    return out
