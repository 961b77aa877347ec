"""The kernel as a `torch.library` operator."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common.launch import LayoutArguments, next_power
from sqkernels.common.matrices import RowMatrices
from sqkernels.common.runtime import assembly

PAGES_PER_PROGRAM = 8


def reconstruct(
    storage: Tensor, pages: Tensor, matrices: RowMatrices, dtype: torch.dtype, rope: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Flatten the arguments into the operator's."""
    empty = storage.new_empty(0, dtype=torch.float32)
    cos, sin = (empty, empty) if rope is None else (t.contiguous() for t in rope)
    m = matrices
    layout = LayoutArguments.of(m).numbers
    return torch.ops.sqkernels.spectral_reconstruct(
        storage,
        pages,
        m.heads,
        m.key.decode_half,
        m.key.constant,
        m.value.decode_half,
        m.value.constant,
        cos,
        sin,
        dtype,
        layout,
    )


@torch.library.custom_op("sqkernels::spectral_reconstruct", mutates_args=())
def _spectral_reconstruct(
    storage: Tensor,
    pages: Tensor,
    heads: Tensor,
    key_decode: Tensor,
    key_constant: Tensor,
    value_decode: Tensor,
    value_constant: Tensor,
    cos: Tensor,
    sin: Tensor,
    dtype: torch.dtype,
    layout: list[int],
) -> tuple[Tensor, Tensor]:
    from sqkernels.spectral_reconstruct.triton import reconstruct_kernel

    a = LayoutArguments.from_numbers(layout)
    batch, n_pages = pages.shape
    kv, dim = key_constant.shape
    keys, values = (storage.new_empty(batch, kv, n_pages * 128, dim, dtype=dtype) for _ in range(2))
    block = 64 if dim <= 128 else 32
    per = max(1, min(PAGES_PER_PROGRAM, n_pages * batch * kv // 256))
    reconstruct_kernel[(-(-n_pages // per), batch * kv, 2)](
        storage,
        pages.contiguous(),
        heads,
        key_decode,
        key_constant,
        value_decode,
        value_constant,
        cos,
        sin,
        keys,
        values,
        n_pages,
        per,
        a.token_bytes,
        HK=kv,
        D=dim,
        DP=next_power(dim),
        DH=max(16, next_power(dim // 2)),
        **a.constants,
        ROPE=cos.numel() > 0,
        T=block,
        ASSEMBLY=assembly(storage.device),
        num_warps=4,
    )
    return keys, values


@_spectral_reconstruct.register_fake
def _(storage: Tensor, pages: Tensor, heads: Tensor, key_decode: Tensor, key_constant: Tensor, *args):
    dtype = args[-2]
    shape = (pages.shape[0], key_constant.shape[0], pages.shape[1] * 128, key_constant.shape[1])
    return storage.new_empty(shape, dtype=dtype), storage.new_empty(shape, dtype=dtype)
