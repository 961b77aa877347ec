"""The kernel as a `torch.library` operator that writes into `pages`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sqkernels.common.launch import LayoutArguments, next_power
from sqkernels.common.matrices import RowMatrices
from sqkernels.common.runtime import interpreting
from sqkernels.operators import operator
from sqkernels.spectral_compress.ops import Encoder

FEW = 64  # tokens of a decode step: small tiles


def write(keys: Tensor, values: Tensor, matrices: RowMatrices, pages: Tensor, slots: Tensor, exact: int) -> None:
    """See `api.spectral_slots`; checked arguments."""
    encoders = [list(Encoder.of(kind).arguments("").values()) for kind in (matrices.key, matrices.value)]
    tensors = [keys, values, slots, matrices.heads, *encoders[0], *encoders[1]]
    layout = LayoutArguments.of(matrices).numbers
    torch.ops.sqkernels.spectral_slots(pages, tensors, layout, matrices.layout.page_bytes, exact)


@operator("sqkernels::spectral_slots", mutates_args=("pages",))
def _spectral_slots(
    pages: Tensor, tensors: Sequence[Tensor], layout: Sequence[int], rows_bytes: int, exact: int
) -> None:
    from sqkernels.spectral_slots.triton import slots_kernel

    keys, values, slots, heads, *encoders = tensors
    a = LayoutArguments.from_numbers(layout)
    tokens, kv, dim = keys.shape
    block = 16 if tokens <= FEW else 64
    names = [f"{kind}_{part}" for kind in ("KEY", "VALUE") for part in ("ENCODE", "OFFSET", "TOP", "SHIFT")]
    slots_kernel[(-(-tokens // block), kv, 2)](
        K=keys,
        V=values,
        PAGES=pages,
        SLOTS=slots,
        HEADS=heads,
        **dict(zip(names, encoders, strict=True)),
        tokens=tokens,
        key_stride=keys.stride(0),
        value_stride=values.stride(0),
        page_stride=pages.stride(0),
        rows_bytes=rows_bytes,
        HK=kv,
        D=dim,
        DP=next_power(dim),
        KEY_COUNT=a.key_planes,
        VALUE_COUNT=a.value_planes,
        **a.padded_bands,
        EXACT=exact,
        STEP=next(s for s in (64, 32, 16) if dim % s == 0),
        T=block,
        UPCAST=interpreting(),
        num_warps=4,
        num_stages=2,
    )


@_spectral_slots.register_fake
def _(pages: Tensor, tensors: Sequence[Tensor], layout: Sequence[int], rows_bytes: int, exact: int) -> None:
    return None
