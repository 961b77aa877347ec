"""`HotCodec`: fixed-rate codes of rotated keys and of values, laid out for reading in place.

Points are evenly spaced, so a key is k̂ = codes · D + c with one matrix D and one vector c a layer. Attention then needs
only q · k̂ = codes · (D q) + c · q: the query is transformed once and keys are never materialized; for values the codes
are summed and transformed once (method.md section 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.codec.bands import BandLayout
from spectralquant.errors import ProfileError
from spectralquant.profile_tensors import FixedTier
from spectralquant.sources.geometry import CacheGeometry


@dataclass(frozen=True)
class HotMatrices:
    """One layer's keys or values.

    encode: float32 `[C, R]`, offset, top: `[R]` in band order. decode: `[padded, C]` in the order that
    `layout.unpack` gives (zero rows where a byte has room to spare), constant: `[C]`.
    """

    layout: BandLayout
    encode: Tensor
    offset: Tensor
    decode: Tensor
    constant: Tensor
    top: Tensor

    def page(self, x: Tensor) -> Tensor:
        """Packed bytes uint8 `[row_bytes, T]` of `x: [T, C]`."""
        codes = torch.addmm(self.offset, x, self.encode).round_().clamp_(min=0)
        return self.layout.pack(torch.minimum(codes, self.top).to(torch.uint8)).T

    def dense(self, pages: Tensor) -> Tensor:
        """Float32 `[n·S, C]` of packed bytes `[n, row_bytes, S]`."""
        codes = self.layout.unpack(pages).transpose(1, 2)
        return (codes @ self.decode + self.constant).flatten(0, 1)


class HotCodec:
    """Matrices of all layers of a profile's hot tier."""

    def __init__(self, tier: FixedTier, geometry: CacheGeometry, device: torch.device | str = "cpu") -> None:
        self.geometry, self.device = geometry, torch.device(device)
        self.layers = [
            tuple(_matrices(tier, geometry, layer, kind, device) for kind in ("key", "value"))
            for layer in range(geometry.layers)
        ]


def _matrices(
    tier: FixedTier, geometry: CacheGeometry, layer: int, kind: str, device: torch.device | str
) -> HotMatrices:
    basis = getattr(tier, kind)
    if basis.analysis.shape[1] != geometry.head_dim:
        raise ProfileError("The hot tier must have a basis per head. Calibrate the profile again (--tier hot).")
    ranks = basis.ranks.tolist()
    first = layer * geometry.kv_heads
    start = sum(ranks[:first])
    heads = torch.repeat_interleave(torch.arange(geometry.kv_heads), basis.ranks[first : first + geometry.kv_heads])
    part = slice(start, start + len(heads))
    bits = getattr(tier, f"{kind}_bits")
    low, step = _spacing(bits, getattr(tier, f"{kind}_codebooks"), part)
    layout = BandLayout(bits[part])
    width, dim = geometry.layer_width, geometry.head_dim
    columns = heads[:, None] * dim + torch.arange(dim)
    encode, decode = torch.zeros(len(heads), width), torch.zeros(len(heads), width)
    encode.scatter_(1, columns, basis.analysis[part].float() * (basis.gain[part] / step)[:, None])
    synthesis = basis.synthesis[part].float() * basis.back[part][:, None]
    decode.scatter_(1, columns, synthesis)
    mean = basis.mean[layer * width : (layer + 1) * width]
    constant = mean + low @ decode
    offset = -(encode @ mean) - low / step
    decode = decode * step[:, None]
    o = layout.order
    decode = decode[o]
    padded = torch.cat([decode, torch.zeros(1, width)])
    return HotMatrices(
        layout,
        encode[o].T.contiguous().to(device),
        offset[o].to(device),
        padded[layout.padded_order()].to(device),
        constant.to(device),
        (2.0 ** bits[part].float() - 1)[o].to(device),
    )


def _spacing(bits: Tensor, points: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """First point and step of the components in `part`."""
    sizes = 2 ** bits.long()
    starts = (sizes.cumsum(0) - sizes)[part]
    low, last = points[starts], points[starts + sizes[part] - 1]
    step = (last - low) / (sizes[part] - 1)
    middle = points[starts + sizes[part] // 2] - low - step * (sizes[part] // 2)
    if bool((middle.abs() > 1e-3 * step).any()):
        raise ProfileError("The hot tier's points are not evenly spaced. Calibrate the profile again (--tier hot).")
    return low, step
