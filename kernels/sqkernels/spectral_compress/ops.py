"""The kernel as a `torch.library` operator that writes into `storage`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from sqkernels.common.launch import LayoutArguments, next_power
from sqkernels.common.matrices import KindMatrices, RowMatrices
from sqkernels.common.runtime import interpreting

TOKENS = ((128, 128), (256, 64), (1 << 30, 32))  # tokens a program for up to so many planes


@dataclass(frozen=True)
class Settings:
    """Launch settings (see NOTES.md). step: how much of the head dimension a product takes at once, at most; warps and
    tokens: of a program, at most."""

    step: int
    warps: int
    tokens: int = 128
    stages: int = 2


WHOLE = Settings(step=32, warps=8)
HALF = Settings(step=64, warps=4)  # bfloat16: tiles take half the room that tf32 ones do


def compress(keys: Tensor, values: Tensor, matrices: RowMatrices, storage: Tensor, pages: Tensor) -> None:
    """Flatten the arguments into the operator's."""
    index = matrices.index or matrices.key
    kinds = [_encoders(k) for k in (matrices.key, matrices.value, index)]
    layout = LayoutArguments.of(matrices).numbers
    torch.ops.sqkernels.spectral_compress(
        keys, values, storage, pages, matrices.heads, *itertools.chain(*kinds), layout
    )


def _encoders(kind: KindMatrices) -> list[Tensor]:
    return [kind.encode.transpose(1, 2).contiguous(), kind.offset, kind.top, kind.shift]


@torch.library.custom_op("sqkernels::spectral_compress", mutates_args=("storage",))
def _spectral_compress(
    keys: Tensor,
    values: Tensor,
    storage: Tensor,
    pages: Tensor,
    heads: Tensor,
    key_encode: Tensor,
    key_offset: Tensor,
    key_top: Tensor,
    key_shift: Tensor,
    value_encode: Tensor,
    value_offset: Tensor,
    value_top: Tensor,
    value_shift: Tensor,
    index_encode: Tensor,
    index_offset: Tensor,
    index_top: Tensor,
    index_shift: Tensor,
    layout: list[int],
) -> None:
    from sqkernels.spectral_compress.triton import compress_kernel

    a = LayoutArguments.from_numbers(layout)
    count, kv, tokens, dim = keys.shape
    chosen = HALF if keys.dtype == torch.bfloat16 else WHOLE
    block = min(chosen.tokens, next(t for planes, t in TOKENS if max(a.key_planes, a.value_planes) <= planes))
    roles = 3 if a.index_rank else 2
    compress_kernel[(count * kv, -(-tokens // block), roles)](
        keys,
        values,
        storage,
        pages,
        heads,
        *(key_encode, key_offset, key_top, key_shift),
        *(value_encode, value_offset, value_top, value_shift),
        *(index_encode, index_offset, index_top, index_shift),
        tokens,
        a.token_bytes + kv * a.index_rank // 2,
        HK=kv,
        D=dim,
        KEY_COUNT=a.key_planes,
        VALUE_COUNT=a.value_planes,
        **a.padded_bands,
        RANK=a.index_rank,
        HALF=max(8, next_power(a.index_rank // 2)),
        ROLES=roles,
        STEP=next(s for s in (128, 64, 32, 16) if s <= chosen.step and dim % s == 0),
        T=block,
        UPCAST=interpreting(),
        num_warps=chosen.warps if block == 128 else min(4, chosen.warps),
        num_stages=chosen.stages,
    )


@_spectral_compress.register_fake
def _(*args) -> None:
    return None
