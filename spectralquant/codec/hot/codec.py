"""`HotCodec`: fixed-rate codes of rotated keys and of values, laid out for reading in place.

The one encoder of hot codes in torch: what the evaluation measures is what a cache holds. On a GPU `sqkernels` writes the
same codes as rows (`codec.hot.pages`).

Points are evenly spaced, so a key is k̂ = codes · D + c with one matrix D and one vector c a layer. Attention then needs
only q · k̂ = codes · (D q) + c · q: the query is transformed once and keys are never materialized; for values the codes
are summed and transformed once (method.md section 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import rotate_block_keys, unrotate_block_keys
from spectralquant.codec.hot.bands import BandLayout
from spectralquant.codec.hot.linear import head_codes
from spectralquant.geometry import CacheGeometry
from spectralquant.profile.tensors import FixedTier
from spectralquant.rotary import Rotation


@dataclass(frozen=True)
class CodeParts:
    """Codes as parts of 8, 4 and 2 bits: one of 6 bits is four high ones and two low ones. component, shift and width
    int64 `[parts]`; attention is linear in codes, so that a part times 2^shift stands for itself."""

    component: Tensor
    shift: Tensor
    width: Tensor

    @classmethod
    def of(cls, bits: Tensor) -> CodeParts:
        """Of components of `bits: [R]` bits each."""
        table = [
            (i, shift, width)
            for i, b in enumerate(bits.tolist())
            for shift, width in (((2, 4), (0, 2)) if b == 6 else ((0, b),))
        ]
        return cls(*torch.tensor(table, dtype=torch.int64).reshape(-1, 3).unbind(1))

    def in_order(self, order: Tensor) -> CodeParts:
        """The same parts in another order."""
        return CodeParts(self.component[order], self.shift[order], self.width[order])

    def to(self, device: torch.device | str) -> CodeParts:
        return CodeParts(self.component.to(device), self.shift.to(device), self.width.to(device))

    def split(self, codes: Tensor) -> Tensor:
        """Parts uint8 `[T, parts]` of codes uint8 `[T, R]`."""
        out = codes[:, self.component]
        return (out >> self.shift.to(torch.uint8)) & (2**self.width - 1).to(torch.uint8)

    def join(self, parts: Tensor) -> Tensor:
        """Codes uint8 `[T, R]` of parts uint8 `[T, parts]`."""
        count = int(self.component.max()) + 1 if len(self.component) else 0
        out = torch.zeros(len(parts), count, dtype=torch.uint8, device=parts.device)
        return out.index_add_(1, self.component, parts << self.shift.to(torch.uint8))


@dataclass(frozen=True)
class HotMatrices:
    """One layer's keys or values.

    encode: float32 `[C, R]`, offset, top: `[R]`, component after component. parts: of the codes, in band order. decode:
    `[Hk, D, padded]` for what `layout.shifted` gives (zero where a byte has room to spare), constant: `[C]`.
    """

    layout: BandLayout
    parts: CodeParts
    encode: Tensor
    offset: Tensor
    decode: Tensor
    constant: Tensor
    top: Tensor

    def page(self, x: Tensor) -> Tensor:
        """Packed bytes uint8 `[row_bytes, T]` of `x: [T, C]`."""
        codes = torch.addmm(self.offset, x, self.encode).round_().clamp_(min=0)
        return self.pack(torch.minimum(codes, self.top).to(torch.uint8))

    def pack(self, codes: Tensor) -> Tensor:
        """Packed bytes uint8 `[row_bytes, T]` of codes uint8 `[T, R]`, component after component."""
        return self.layout.pack(self.parts.split(codes)).T

    def unpack(self, page: Tensor) -> Tensor:
        """Codes uint8 `[T, R]`, component after component, of packed bytes uint8 `[row_bytes, T]`."""
        padded, order = self.layout.unpack(page), self.layout.padded_order()
        parts = torch.empty(page.shape[1], len(self.layout.order), dtype=torch.uint8, device=page.device)
        parts[:, order[order >= 0].to(page.device)] = padded[order >= 0].T
        return self.parts.join(parts)

    def dense(self, pages: Tensor) -> Tensor:
        """Float32 `[n·S, C]` of packed bytes `[n, row_bytes, S]`."""
        codes = self.layout.shifted(pages).transpose(1, 2)
        return (codes @ self.decode.flatten(0, 1).T + self.constant).flatten(0, 1)


@dataclass(frozen=True)
class HotBlock:
    """A block's keys and values layer by layer, packed bytes uint8 `[row_bytes, T]`, and the rotations keys are turned back
    with."""

    pages: tuple[tuple[Tensor, Tensor], ...]
    rotations: tuple[Rotation | None, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the codes; there is nothing else (rotations follow from positions)."""
        return sum(page.untyped_storage().nbytes() for pair in self.pages for page in pair)


class HotCodec:
    """Matrices of all layers of a profile's hot tier."""

    def __init__(self, tier: FixedTier, geometry: CacheGeometry, device: torch.device | str = "cpu") -> None:
        self.geometry, self.device = geometry, torch.device(device)
        self.layers = [
            tuple(_matrices(tier, geometry, layer, kind, device) for kind in ("key", "value"))
            for layer in range(geometry.layers)
        ]

    def encode(self, block: KVBlock) -> HotBlock:
        """Quantize and pack a block."""
        both = (rotate_block_keys(block, block.keys), block.values)
        flat = [x.float().flatten(2) for x in both]
        pages = [
            (key.page(flat[0][:, layer]), value.page(flat[1][:, layer]))
            for layer, (key, value) in enumerate(self.layers)
        ]
        return HotBlock(tuple(pages), block.rotations)

    def decode(self, coded: HotBlock) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values, float32 `[T, L, Hk, D]`."""
        both = (
            torch.stack(
                [pair[i].dense(pages[i][None]) for pair, pages in zip(self.layers, coded.pages, strict=True)], 1
            )
            for i in range(2)
        )
        keys, values = (x.unflatten(2, (self.geometry.kv_heads, self.geometry.head_dim)) for x in both)
        return unrotate_block_keys(coded, keys), values


def _matrices(
    tier: FixedTier, geometry: CacheGeometry, layer: int, kind: str, device: torch.device | str
) -> HotMatrices:
    codes = head_codes(tier, geometry, layer, kind)
    parts = CodeParts.of(torch.cat([c.bits for c in codes]))
    layout = BandLayout(parts.width)
    parts = parts.in_order(layout.order)
    encode, decode = (torch.block_diag(*(getattr(c, name) for c in codes)) for name in ("encode", "decode"))
    offset, constant = (torch.cat([getattr(c, name) for c in codes]) for name in ("offset", "constant"))
    top = torch.cat([2.0 ** c.bits.float() - 1 for c in codes])
    rows = decode[parts.component] * (2.0 ** parts.shift.float())[:, None]
    padded = torch.cat([rows, torch.zeros(1, geometry.layer_width, dtype=torch.float32)])
    return HotMatrices(
        layout,
        parts.to(device),
        encode.T.contiguous().to(device),
        offset.to(device),
        layout.shifted_rows(padded[layout.padded_order()])
        .T.reshape(geometry.kv_heads, geometry.head_dim, -1)
        .contiguous()
        .to(device),
        constant.to(device),
        top.to(device),
    )
