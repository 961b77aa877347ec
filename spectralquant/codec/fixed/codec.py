"""`FixedRateCodec`: the warm tier, codes of fixed width per component, of keys before RoPE in a basis per layer (method.md
section 3). Hot codes, which attention reads in place, have their own codec (`codec.hot`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.projector import SpectralProjector
from spectralquant.geometry import CacheGeometry
from spectralquant.profile.tensors import FixedTier
from spectralquant.streams import finish_here
from sqkernels.bitpack import BitRows


@dataclass(frozen=True)
class FixedBlock:
    """Packed codes uint8 `[T, bytes]` of keys and values."""

    keys: Tensor
    values: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the codes; there is nothing else."""
        return self.keys.untyped_storage().nbytes() + self.values.untyped_storage().nbytes()


class _Codebooks:
    """Nearest-point search for components of different widths, one width at a time."""

    def __init__(self, bits: Tensor, points: Tensor) -> None:
        self.groups: list[tuple[Tensor, Tensor]] = []
        self.points = points
        starts = torch.cumsum(2 ** bits.long(), 0) - 2 ** bits.long()
        self.starts = starts.to(points.device, torch.int32)
        for width in sorted(set(bits.tolist())):
            index = torch.nonzero(bits == width).squeeze(1)
            rows = starts[index][:, None] + torch.arange(2**width)
            self.groups.append((index.to(points.device), points[rows.to(points.device)]))

    def encode(self, y: Tensor) -> Tensor:
        codes = torch.zeros(y.shape, dtype=torch.uint8, device=y.device)
        for index, points in self.groups:
            middles = ((points[:, 1:] + points[:, :-1]) / 2).contiguous()
            codes[:, index] = _passed(middles, y[:, index].T.contiguous()).T
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        return torch.nn.functional.embedding(self.starts + codes, self.points[:, None])[..., 0]


def _passed(middles: Tensor, y: Tensor) -> Tensor:
    """How many of its row's sorted `middles: [n, k]` lie below each of `y: [n, T]`, uint8 (NaN: all of them)."""
    if middles.shape[1] > 15 or y.device.type != "cpu":
        return torch.searchsorted(middles, y).to(torch.uint8)
    passed = torch.zeros(y.shape, dtype=torch.uint8)
    for middle in middles.unbind(1):  # a few comparisons of whole rows are faster than a search for each value
        passed += (y <= middle[:, None]).logical_not_()
    return passed


class FixedRateCodec:
    """Encoder and decoder of one profile's warm tier."""

    def __init__(self, tier: FixedTier, geometry: CacheGeometry, device: torch.device | str = "cpu") -> None:
        self.geometry, self.device = geometry, torch.device(device)
        self.projectors = (SpectralProjector(tier.key, device), SpectralProjector(tier.value, device))
        self.bits = (tier.key_bits, tier.value_bits)
        self.packing = tuple(BitRows(bits, device) for bits in self.bits)
        self._layer_books: dict[tuple[int, int], tuple[int, int, BitRows, _Codebooks]] = {}
        self.points = (tier.key_codebooks.to(device), tier.value_codebooks.to(device))
        self.books = tuple(_Codebooks(bits, points) for bits, points in zip(self.bits, self.points, strict=True))

    def encode(self, block: KVBlock) -> FixedBlock:
        """Quantize and pack a block."""
        packed = []
        for i, x in enumerate((block.keys, block.values)):
            y = self.projectors[i].project(x.reshape(block.tokens, -1).float(), None)
            packed.append(self.packing[i].pack(self.books[i].encode(y)))
        return FixedBlock(packed[0], packed[1])

    def decode(self, coded: FixedBlock) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values, float32 `[T, L, Hk, D]`."""
        shape = (-1, self.geometry.layers, self.geometry.kv_heads, self.geometry.head_dim)
        out = []
        for i, packed in enumerate((coded.keys, coded.values)):
            y = self.books[i].decode(self.packing[i].unpack(packed))
            out.append(self.projectors[i].reconstruct(y, None).view(shape))
        return out[0], out[1]

    def layer_bytes(self, layer: int, kind: int) -> tuple[int, int]:
        """First and one past the last byte of a row that hold codes of one layer's keys (0) or values (1)."""
        return self._layer(layer, kind)[:2]

    def decode_layer(self, rows: Tensor, layer: int, kind: int) -> Tensor:
        """Keys (before RoPE) or values float32 `[T, C]` from `layer_bytes` of each row."""
        _, _, packing, books = self._layer(layer, kind)
        projector, width = self.projectors[kind], self.geometry.layer_width
        y = books.decode(packing.unpack(rows)[:, 1:])
        groups = range(layer * width // projector.span, (layer + 1) * width // projector.span)
        parts, at = [], 0
        for group in groups:
            own = y[:, at : at + projector.ranks[group]]
            at += projector.ranks[group]
            parts.append(projector.columns(own, None, group * projector.span, (group + 1) * projector.span))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _layer(self, layer: int, kind: int) -> tuple[int, int, BitRows, _Codebooks]:
        """Bytes, packing (led by the bits to skip in the first byte) and codebooks of one layer."""
        if (layer, kind) not in self._layer_books:
            width, projector = self.geometry.layer_width, self.projectors[kind]
            if projector.span > width:
                raise ValueError("a basis over several layers cannot be read layer by layer")
            groups = width // projector.span
            start = sum(projector.ranks[: layer * groups])
            part = slice(start, start + sum(projector.ranks[layer * groups : (layer + 1) * groups]))
            widths = self.bits[kind].long()
            first, last = int(widths[: part.start].sum()), int(widths[: part.stop].sum())
            bits = torch.cat([torch.tensor([first % 8]), widths[part]]).to(torch.uint8)
            sizes = 2**widths
            points = self.points[kind][int(sizes[: part.start].sum()) : int(sizes[: part.stop].sum())]
            books = _Codebooks(self.bits[kind][part], points)
            packing = BitRows(bits, points.device)
            finish_here(points.device)  # for whichever stream reads this layer next
            self._layer_books[layer, kind] = (first // 8, -(-last // 8), packing, books)
        return self._layer_books[layer, kind]
