"""`turboquant`: every key (after RoPE) and value vector by random rotation and Lloyd–Max codes (arXiv 2504.19874).

`variant=mse` is algorithm 1. `variant=prod` codes keys by algorithm 2 (unbiased inner products) and values by
algorithm 1. Half bits split the channels of each head: the half with more energy in the block gets one bit more, as the
paper's outlier channels do (section 4.3); the block says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import rotate_block_keys, unrotate_block_keys
from spectralquant.codec.turboquant import TurboCodes, TurboProductCodes, TurboProductQuantizer, TurboQuantizer
from spectralquant.errors import InputError
from spectralquant.methods.entry import MethodEntry


@dataclass(frozen=True)
class _Coded:
    parts: tuple[tuple[TurboCodes | TurboProductCodes, ...], ...]
    order: Tensor | None
    block: KVBlock
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        mask = 0 if self.order is None else -(-self.order.numel() // 8)
        return mask + sum(codes.nbytes for kind in self.parts for codes in kind)


class TurboQuant:
    """Bits per coordinate (whole, or with a half), plus 16 bits of norm a vector (and half vector, and residual)."""

    name = "turboquant"
    exact_bits = 16
    by_token = True

    def __init__(self, head_dim: int, bits: float = 4, seed: int = 0, variant: str = "mse") -> None:
        if variant not in ("mse", "prod"):
            raise InputError(f"turboquant: variant={variant!r} is not one of mse, prod.")
        if bits * 2 % 1 or not 1 <= bits <= 8:
            raise InputError(f"turboquant: bits={bits:g} must be 1 to 8 in steps of a half.")
        self.split = bool(bits % 1)
        dims = (head_dim // 2, head_dim - head_dim // 2) if self.split else (head_dim,)
        widths = (int(bits) + 1, int(bits)) if self.split else (int(bits),)
        first = TurboProductQuantizer if variant == "prod" else TurboQuantizer
        self.quantizers = tuple(
            tuple(kind(d, w, seed) for d, w in zip(dims, widths, strict=True)) for kind in (first, TurboQuantizer)
        )
        self.dims = dims
        self.options: dict[str, Any] = {"bits": bits}
        if variant != "mse":
            self.options["variant"] = variant

    def encode(self, block: KVBlock) -> _Coded:
        """Quantize a block."""
        both = torch.stack([rotate_block_keys(block, block.keys), block.values])
        order = None
        if self.split:
            order = both.square().mean(1).argsort(-1, descending=True)
            half = self.dims[0]
            order = torch.cat([order[..., :half].sort(-1).values, order[..., half:].sort(-1).values], dim=-1)
            both = both.gather(-1, order[:, None].expand_as(both))
        parts = tuple(
            tuple(
                q.encode(x.reshape(-1, x.shape[-1])) for q, x in zip(quantizers, kind.split(self.dims, -1), strict=True)
            )
            for quantizers, kind in zip(self.quantizers, both, strict=True)
        )
        return _Coded(parts, order, block, tuple(both.shape))

    def decode(self, encoded: _Coded) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values."""
        kinds = []
        for quantizers, codes in zip(self.quantizers, encoded.parts, strict=True):
            halves = [q.decode(c).view(*encoded.shape[1:-1], -1) for q, c in zip(quantizers, codes, strict=True)]
            kinds.append(torch.cat(halves, dim=-1))
        both = torch.stack(kinds)
        if encoded.order is not None:
            both = torch.empty_like(both).scatter_(-1, encoded.order[:, None].expand_as(both), both)
        return unrotate_block_keys(encoded.block, both[0]), both[1]


METHOD = MethodEntry(
    "turboquant",
    "random rotation and Lloyd-Max codes",
    "arXiv 2504.19874",
    lambda context, **options: TurboQuant(context.loaded.geometry.head_dim, **options),
    {"bits": float, "variant": str, "seed": int},
    ({"bits": 4.0}, {"bits": 3.0}, {"bits": 2.0}),
    check=lambda **options: TurboQuant(8, **options),
)
