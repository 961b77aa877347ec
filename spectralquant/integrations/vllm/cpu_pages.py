"""Where the CPU build of vLLM puts each number of a page, found out by writing marked keys and values.

The page's shape says `[Hk, N, 2·D]`. What its attention kernels write differs: K transposed in the first half, or packed for
matrix instructions, by the processor's instruction set. So the engine's own function writes, and every number says where it went.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.errors import InputError

DIGIT = 4096
MARK = 0x2000


@dataclass(frozen=True)
class CpuPages:
    """Places of K and V, each `[Hk, N, D]`, in a page of `Hk·N·2·D` numbers."""

    keys: Tensor
    values: Tensor

    def read(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        """K and V, each `[Hk, n·N, D]`, of n pages `[n, Hk·N·2·D]` that follow each other."""
        sides = (pages[:, places.flatten()].view(-1, *places.shape) for places in (self.keys, self.values))
        keys, values = (side.transpose(0, 1).flatten(1, 2) for side in sides)
        return keys, values

    def write(self, keys: Tensor, values: Tensor) -> Tensor:
        """Pages `[n, Hk·N·2·D]` of K and V, each `[Hk, n·N, D]`."""
        heads, block, dim = self.keys.shape
        pages = keys.new_empty(keys.shape[1] // block, 2 * heads * block * dim)
        for side, places in ((keys, self.keys), (values, self.values)):
            pages[:, places.flatten()] = side.unflatten(1, (-1, block)).transpose(0, 1).flatten(1)
        return pages


def learn_pages(heads: int, block: int, dim: int, dtype: torch.dtype) -> CpuPages:
    """Write marked pages with this build's function and read where the marks are.

    Raises:
        InputError: the function does not put each number in one place of its own.
    """
    count = heads * block * dim
    marks = torch.arange(2 * count)
    number = torch.zeros(2 * count, dtype=torch.long)
    for weight in (1, DIGIT):
        page = _written(marks // weight % DIGIT, heads, block, dim, dtype)
        number += _unmarked(page, dtype) * weight
    if not torch.equal(number.sort().values, marks):
        raise InputError(
            "This build of vLLM keeps keys and values in a form that is not a copy of them; nothing can be stored."
        )
    places = torch.argsort(number)
    keys, values = (side.view(block, heads, dim).transpose(0, 1).contiguous() for side in places.split(count))
    return CpuPages(keys, values)


def _written(digits: Tensor, heads: int, block: int, dim: int, dtype: torch.dtype) -> Tensor:
    """The page `[Hk·N·2·D]` after writing K and V, each `[N, Hk, D]`, whose numbers are marked with `digits`."""
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    keys, values = _marked(digits, dtype).view(2, block, heads, dim)
    page = torch.zeros(1, heads, 2 * block, dim, dtype=dtype)
    key_half, value_half = page.chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(
        keys,
        values,
        key_half,
        value_half,
        torch.arange(block),
        _get_attn_isa(dtype, block, dim),
        k_scale=1.0,
        v_scale=1.0,
        kv_cache_dtype="auto",
    )
    return page.flatten()


def _marked(digits: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers that stand for digits: plain ones in float32, in 16 bits those whose bits are the digit above a normal number's."""
    return digits.to(dtype) if dtype == torch.float32 else (digits + MARK).to(torch.int16).view(dtype)


def _unmarked(page: Tensor, dtype: torch.dtype) -> Tensor:
    return page.long() if dtype == torch.float32 else page.view(torch.int16).long() - MARK
