"""`turboquant`: every key (after RoPE) and value vector by random rotation and Lloyd–Max codes (arXiv 2504.19874).

`variant=mse` is algorithm 1. `variant=prod` codes keys by algorithm 2 (unbiased inner products) and values by
algorithm 1.

Outlier channels as in section 4.3: the channels of each head that have most energy in a block are coded apart from the
others, by a quantizer (and a norm) of their own with more bits; the block says which they are. `bits=2.5` and `bits=3.5` split
each head in halves of 2 and 3 (3 and 4) bits, which is 2.5 and 3.5 bits on average. The paper's example of its 2.5 bits, 32 of
128 channels with 3 bits and 96 with 2, is 2.25 bits: that is `bits=2,outliers=0.25`. Keys with a few huge channels need the
outliers' code to be fine, as their norm swallows the rest: `outliers=0.0625,outlier_bits=8`.
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
    """Bits per coordinate (whole, or with a half), plus 16 bits of norm a vector (and outlier part, and residual).

    outliers: share of a head's channels that are coded apart, 0 to 0.5 (unset: a half for half bits, else none).
    outlier_bits: their bits (unset: one more than the others').
    """

    name = "turboquant"
    exact_bits = 16
    by_token = True

    def __init__(
        self,
        head_dim: int,
        bits: float = 4,
        seed: int = 0,
        variant: str = "mse",
        outliers: float | None = None,
        outlier_bits: int | None = None,
    ) -> None:
        require_options(bits, variant, outliers, outlier_bits)
        share = (0.5 if bits % 1 else 0.0) if outliers is None else outliers
        few = round(head_dim * share)
        self.split = share > 0
        if self.split and not 0 < few < head_dim:
            raise InputError(
                f"turboquant: outliers={share:g} of {head_dim} channels is {few}; give at least one channel."
            )
        self.dims = (few, head_dim - few) if self.split else (head_dim,)
        widths = (outlier_bits or int(bits) + 1, int(bits)) if self.split else (int(bits),)
        first = TurboProductQuantizer if variant == "prod" else TurboQuantizer
        self.quantizers = tuple(
            tuple(kind(d, w, seed) for d, w in zip(self.dims, widths, strict=True)) for kind in (first, TurboQuantizer)
        )
        self.options: dict[str, Any] = {"bits": bits}
        if variant != "mse":
            self.options["variant"] = variant
        if outliers is not None:
            self.options |= {"outliers": outliers, "outlier_bits": widths[0]}

    def encode(self, block: KVBlock) -> _Coded:
        """Quantize a block."""
        both = torch.stack([rotate_block_keys(block, block.keys), block.values])
        order = None
        if self.split:
            order = both.square().mean(1).argsort(-1, descending=True)
            few = self.dims[0]
            order = torch.cat([order[..., :few].sort(-1).values, order[..., few:].sort(-1).values], dim=-1)
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


def require_options(
    bits: float = 4, variant: str = "mse", outliers: float | None = None, outlier_bits: int | None = None, seed: int = 0
) -> None:
    """Raise InputError for values out of range."""
    if variant not in ("mse", "prod"):
        raise InputError(f"turboquant: variant={variant!r} is not one of mse, prod.")
    if bits * 2 % 1 or not 1 <= bits <= 8:
        raise InputError(f"turboquant: bits={bits:g} must be 1 to 8 in steps of a half.")
    if variant == "prod" and bits < 2:
        raise InputError(f"turboquant: variant=prod needs at least 2 bits, one of them for the sketch, not {bits:g}.")
    if outliers is None:
        if outlier_bits is not None:
            raise InputError("turboquant: outlier_bits needs outliers, a share of the channels, as outliers=0.25.")
        return
    if bits % 1:
        raise InputError(f"turboquant: bits={bits:g} already splits channels; with outliers= give whole bits.")
    if not 0 < outliers <= 0.5:
        raise InputError(f"turboquant: outliers={outliers:g} is outside 0 to 0.5 (a share of the channels).")
    if outlier_bits is not None and not bits < outlier_bits <= 8:
        raise InputError(f"turboquant: outlier_bits={outlier_bits} must be more than bits={bits:g}, and 8 at most.")
    if bits >= 8:
        raise InputError("turboquant: outliers need bits of 7 at most.")


PAPER_OUTLIERS = {"bits": 2.0, "outliers": 0.25}
FINE_OUTLIERS = {"outliers": 0.0625, "outlier_bits": 8}

METHOD = MethodEntry(
    "turboquant",
    "random rotation and Lloyd-Max codes",
    "arXiv 2504.19874",
    lambda context, **options: TurboQuant(context.loaded.geometry.head_dim, **options),
    {"bits": float, "variant": str, "seed": int, "outliers": float, "outlier_bits": int},
    (
        *({"bits": bits} for bits in (4.0, 3.5, 3.0, 2.5, 2.0)),
        PAPER_OUTLIERS,
        *({"bits": bits, **FINE_OUTLIERS} for bits in (4.0, 3.0)),
    ),
    check=require_options,
)
