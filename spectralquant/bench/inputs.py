"""Random inputs at a shape: dense keys and values, and codes of fixed width with an index."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.models.shapes import ModelShape
from sqkernels.common import PAGE, ExactTokens, LinearCode, RowMatrices, RowPages

SINKS = 4


@dataclass(frozen=True)
class CodeSettings:
    """bits a component, components of the index, share of the coded tokens that the index may select, exact window."""

    bits: int = 4
    index_rank: int = 16
    share: float = 0.1
    window: int = PAGE

    def selected(self, coded: int) -> int:
        """Tokens that the index may select of `coded` ones."""
        return math.ceil(self.share * coded)


def coded_tokens(context: int, window: int) -> int:
    """Tokens of a context that are neither sinks nor in the window."""
    return max(0, context - SINKS - window)


def random_matrices(
    shape: ModelShape, settings: CodeSettings, device: torch.device | str, layers: int = 1
) -> RowMatrices:
    """Orthonormal bases with decaying steps for all heads of some layers; what they hold does not change the time."""
    generator = torch.Generator().manual_seed(0)
    dim = shape.head_dim

    def code(bits: int, rank: int) -> LinearCode:
        basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0][:rank]
        step = 5.0 / (2**bits - 1) / torch.arange(1, rank + 1) ** 0.5
        mean = torch.randn(dim, generator=generator)
        widths = torch.full((rank,), bits, dtype=torch.uint8)
        middle = (2**bits - 1) / 2
        decode = basis * step[:, None]
        encode = basis / step[:, None]
        return LinearCode(widths, encode, middle - encode @ mean, decode, mean - middle * decode.sum(0))

    keys, values, index = ([code(b, r)] * (shape.kv_heads * layers) for b, r in _widths(shape, settings))
    return RowMatrices.build(keys, values, index, device=device)


def _widths(shape: ModelShape, settings: CodeSettings) -> list[tuple[int, int]]:
    return [(settings.bits, shape.head_dim), (settings.bits, shape.head_dim), (4, settings.index_rank)]


@dataclass(frozen=True)
class Inputs:
    """One set of everything a decode step at (batch, context) reads."""

    query: Tensor
    pages: RowPages
    exact: ExactTokens


def random_inputs(shape: ModelShape, matrices: RowMatrices, batch: int, context: int, window: int, seed: int) -> Inputs:
    """Random codes (any byte is one), sinks, window and query, bfloat16."""
    device = matrices.device
    generator = torch.Generator(device=device).manual_seed(seed)
    coded = coded_tokens(context, window)
    count = max(1, -(-coded // PAGE))
    nbytes = matrices.layout.page_bytes
    data = torch.randint(0, 256, (batch, count, nbytes), dtype=torch.uint8, device=device, generator=generator)
    tokens = torch.full((batch,), coded, dtype=torch.int32)

    def half(tokens: int) -> Tensor:
        size = (batch, shape.kv_heads, tokens, shape.head_dim)
        return torch.randn(size, device=device, generator=generator, dtype=torch.bfloat16)

    exact = ExactTokens(
        half(SINKS), half(SINKS), half(min(window, context - SINKS)), half(min(window, context - SINKS))
    )
    query = torch.randn(batch, shape.heads, shape.head_dim, device=device, generator=generator, dtype=torch.bfloat16)
    return Inputs(query, RowPages.contiguous(data, matrices, tokens), exact)
