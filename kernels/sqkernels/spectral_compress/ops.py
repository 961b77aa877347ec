"""The kernel as a `torch.library` operator that writes into `storage`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sqkernels.common.launch import LayoutArguments, next_power
from sqkernels.common.matrices import KindMatrices, RowMatrices
from sqkernels.common.runtime import interpreting
from sqkernels.operators import operator

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


@dataclass(frozen=True)
class Encoder:
    """A `KindMatrices`' encoder as the kernel reads it: encode `[Hk, n, D]`; offset, top and shift `[Hk, n]`."""

    encode: Tensor
    offset: Tensor
    top: Tensor
    shift: Tensor

    @classmethod
    def of(cls, kind: KindMatrices) -> Encoder:
        """Of keys, values or the index."""
        return cls(kind.encode.transpose(1, 2).contiguous(), kind.offset, kind.top, kind.shift)

    def arguments(self, name: str) -> dict[str, Tensor]:
        """By the kernel's names."""
        return {f"{name}_{f.name.upper()}": getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class CompressCall:
    """Blocks `[N, Hk, T, D]` to code, where their pages lie, and the encoders (index: those of keys where there is none)."""

    keys: Tensor
    values: Tensor
    pages: Tensor
    heads: Tensor
    key: Encoder
    value: Encoder
    index: Encoder

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, pages: Tensor, matrices: RowMatrices) -> CompressCall:
        """From what the checked entry point takes."""
        kinds = (matrices.key, matrices.value, matrices.index or matrices.key)
        return cls(keys, values, pages, matrices.heads, *(Encoder.of(k) for k in kinds))

    def as_list(self) -> list[Tensor]:
        """As a `torch.library` operator takes it; `from_list` gives it back."""
        encoders = [getattr(e, f.name) for e in (self.key, self.value, self.index) for f in fields(e)]
        return [self.keys, self.values, self.pages, self.heads, *encoders]

    @classmethod
    def from_list(cls, tensors: Sequence[Tensor]) -> CompressCall:
        """Back from `as_list`."""
        return cls(*tensors[:4], Encoder(*tensors[4:8]), Encoder(*tensors[8:12]), Encoder(*tensors[12:]))

    @property
    def arguments(self) -> dict[str, Any]:
        """Tensors by the kernel's names."""
        encoders = self.key.arguments("KEY") | self.value.arguments("VALUE") | self.index.arguments("INDEX")
        return {"K": self.keys, "V": self.values, "PAGES": self.pages, "HEADS": self.heads} | encoders


def compress(keys: Tensor, values: Tensor, matrices: RowMatrices, storage: Tensor, pages: Tensor) -> None:
    """See `api.spectral_compress`; checked, contiguous arguments."""
    tensors = CompressCall.of(keys, values, pages, matrices).as_list()
    torch.ops.sqkernels.spectral_compress(storage, tensors, LayoutArguments.of(matrices).numbers)


@operator("sqkernels::spectral_compress", mutates_args=("storage",))
def _spectral_compress(storage: Tensor, tensors: Sequence[Tensor], layout: Sequence[int]) -> None:
    from sqkernels.spectral_compress.triton import compress_kernel

    call, a = CompressCall.from_list(tensors), LayoutArguments.from_numbers(layout)
    count, kv, tokens, dim = call.keys.shape
    chosen = HALF if call.keys.dtype == torch.bfloat16 else WHOLE
    block = min(chosen.tokens, next(t for planes, t in TOKENS if max(a.key_planes, a.value_planes) <= planes))
    roles = 3 if a.index_rank else 2
    compress_kernel[(count * kv, -(-tokens // block), roles)](
        STORAGE=storage,
        **call.arguments,
        tokens=tokens,
        token_bytes=a.token_bytes + kv * a.index_rank // 2,
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
def _(storage: Tensor, tensors: Sequence[Tensor], layout: Sequence[int]) -> None:
    return None
