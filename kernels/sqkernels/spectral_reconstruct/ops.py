"""The kernel as a `torch.library` operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sqkernels.common.launch import LayoutArguments, next_power
from sqkernels.common.layout import PAGE
from sqkernels.common.matrices import RowMatrices
from sqkernels.common.runtime import assembly
from sqkernels.operators import operator

PAGES_PER_PROGRAM = 8


@dataclass(frozen=True)
class ReconstructCall:
    """Pages to read, decoders (float16), and cosines and sines float32 `[B, N·128, D]`, empty where keys are not turned."""

    storage: Tensor
    pages: Tensor
    heads: Tensor
    key_decode: Tensor
    key_constant: Tensor
    value_decode: Tensor
    value_constant: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def of(
        cls, storage: Tensor, pages: Tensor, matrices: RowMatrices, rope: tuple[Tensor, Tensor] | None
    ) -> ReconstructCall:
        """From what the checked entry point takes."""
        empty = storage.new_empty(0, dtype=torch.float32)
        decoders = (
            matrices.key.decode_half,
            matrices.key.constant,
            matrices.value.decode_half,
            matrices.value.constant,
        )
        turns = (empty, empty) if rope is None else (t.contiguous() for t in rope)
        return cls(storage, pages.contiguous(), matrices.heads, *decoders, *turns)

    def as_list(self) -> list[Tensor]:
        """As a `torch.library` operator takes it: `ReconstructCall(*tensors)` gives the object back."""
        return list(vars(self).values())

    @property
    def arguments(self) -> dict[str, Any]:
        """Tensors by the kernel's names."""
        return {f.name.upper(): getattr(self, f.name) for f in fields(self)}

    def outputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Room for keys and values `[B, Hk, N·128, D]`."""
        batch, n_pages = self.pages.shape
        shape = (batch, self.key_constant.shape[0], n_pages * PAGE, self.key_constant.shape[1])
        return self.storage.new_empty(shape, dtype=dtype), self.storage.new_empty(shape, dtype=dtype)


def reconstruct(
    storage: Tensor, pages: Tensor, matrices: RowMatrices, dtype: torch.dtype, rope: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """See `api.spectral_reconstruct`; checked arguments."""
    tensors = ReconstructCall.of(storage, pages, matrices, rope).as_list()
    return torch.ops.sqkernels.spectral_reconstruct(tensors, LayoutArguments.of(matrices).numbers, dtype)


@operator("sqkernels::spectral_reconstruct")
def _spectral_reconstruct(
    tensors: Sequence[Tensor], layout: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    from sqkernels.spectral_reconstruct.triton import reconstruct_kernel

    call, a = ReconstructCall(*tensors), LayoutArguments.from_numbers(layout)
    batch, n_pages = call.pages.shape
    kv, dim = call.key_constant.shape
    keys, values = call.outputs(dtype)
    per_program = max(1, min(PAGES_PER_PROGRAM, n_pages * batch * kv // 256))
    reconstruct_kernel[(-(-n_pages // per_program), batch * kv, 2)](
        **call.arguments,
        OUT_K=keys,
        OUT_V=values,
        n_pages=n_pages,
        pages_per_program=per_program,
        token_bytes=a.token_bytes,
        HK=kv,
        D=dim,
        DP=next_power(dim),
        DH=max(16, next_power(dim // 2)),
        **a.constants,
        ROPE=call.cos.numel() > 0,
        T=64 if dim <= 128 else 32,
        ASSEMBLY=assembly(call.storage.device),
        num_warps=4,
    )
    return keys, values


@_spectral_reconstruct.register_fake
def _(tensors: Sequence[Tensor], layout: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return ReconstructCall(*tensors).outputs(dtype)
