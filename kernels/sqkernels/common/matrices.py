"""`RowMatrices`: from keys and values to planes and back, as the kernels need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sqkernels.common.layout import RowLayout

CENTRES = {4: 8.0, 2: 1.5, 1: 0.5}


@dataclass(frozen=True)
class LinearCode:
    """One head's evenly spaced quantizer: codes = clamp(round(encode · x + offset), 0, 2^bits − 1), x̂ = codes · decode
    + constant.

    bits: uint8 `[R]`. encode, decode: float32 `[R, D]`. offset: `[R]`. constant: `[D]`.
    """

    bits: Tensor
    encode: Tensor
    offset: Tensor
    decode: Tensor
    constant: Tensor


@dataclass(frozen=True)
class KindMatrices:
    """Keys or values of a layer, per padded plane column n.

    encode: float32 `[Hk, D, n]`, in memory `[Hk, n, D]`; offset, top: `[Hk, n]`; shift: int32 `[Hk, n]`: plane = (clamp(round(x · encode +
    offset), 0, top) >> shift) masked to its width. decode: float32 `[Hk, n, D]` and constant: `[Hk, D]`:
    x̂ = (planes − centres) · decode + constant, where the centres (8, 1.5, 0.5 for 4, 2, 1 bits) keep sums small.
    decode_half: decode in float16, for reconstruction.
    """

    encode: Tensor
    offset: Tensor
    top: Tensor
    shift: Tensor
    decode: Tensor
    constant: Tensor
    decode_half: Tensor

    def part(self, first: int, count: int, columns: Tensor | None = None) -> KindMatrices:
        """Heads first … first + count, of all columns (views) or of some (copies)."""
        out = KindMatrices(*(getattr(self, f.name)[first : first + count] for f in fields(self)))
        if columns is None:
            return out
        at = columns.to(self.encode.device)
        encode = out.encode.transpose(1, 2)[:, at].transpose(1, 2)
        rest = (getattr(out, name)[:, at] for name in ("offset", "top", "shift", "decode"))
        return KindMatrices(encode, *rest, out.constant, out.decode_half[:, at])


@dataclass(frozen=True)
class RowMatrices:
    """A layer's layout and matrices on one device. index: 4-bit codes of `index_rank` components (x̂ = codes · decode +
    constant, no centres), or None."""

    layout: RowLayout
    heads: Tensor
    key: KindMatrices
    value: KindMatrices
    index: KindMatrices | None

    @classmethod
    def build(
        cls,
        keys: Sequence[LinearCode],
        values: Sequence[LinearCode],
        index: Sequence[LinearCode] | None = None,
        *,
        align: int = 4,
        device: torch.device | str = "cpu",
    ) -> RowMatrices:
        """Matrices of one `LinearCode` a head; those of `index` have an equal, even number of 4-bit components.

        Raises:
            ValueError: the numbers of heads or the index's shapes disagree.
        """
        rank = 0
        if index is not None:
            rank = len(index[0].bits)
            if len(index) != len(keys) or any(i.bits.tolist() != [4] * rank for i in index):
                raise ValueError("the index needs the same number of 4-bit components in every head")
        layout = RowLayout([k.bits for k in keys], [v.bits for v in values], index_rank=rank, align=align)
        both = (_kind(layout, 0, keys, device), _kind(layout, 1, values, device))
        return cls(layout, layout.head_table().to(device), *both, None if index is None else _index(index, device))

    def part(self, first: int, count: int, *, narrow: bool = True) -> RowMatrices:
        """What `count` heads need, from head `first` on: one layer of pages that hold several layers' heads.

        narrow: padded to these heads alone (see `RowLayout.part`), else as all are, so that one compilation serves all.
        """
        layout = self.layout.part(first, count, narrow=narrow)
        index = None if self.index is None else self.index.part(first, count)
        both = (m.part(first, count, layout.columns_in(self.layout, i)) for i, m in enumerate((self.key, self.value)))
        return RowMatrices(layout, self.heads[first : first + count], *both, index)

    @property
    def kv_heads(self) -> int:
        return len(self.layout.heads)

    @property
    def head_dim(self) -> int:
        return self.key.constant.shape[1]

    @property
    def device(self) -> torch.device:
        return self.heads.device


def _kind(layout: RowLayout, kind: int, codes: Sequence[LinearCode], device: torch.device | str) -> KindMatrices:
    component, shift, widths = layout.plane_table(kind)
    dim = codes[0].constant.shape[0]
    encode = torch.zeros(len(codes), component.shape[1], dim, dtype=torch.float32)
    decode = torch.zeros_like(encode)
    offset, top, centres = (torch.zeros(component.shape, dtype=torch.float32) for _ in range(3))
    constant = torch.stack([c.constant.float() for c in codes])
    for width, centre in CENTRES.items():
        centres[widths == width] = centre
    for h, code in enumerate(codes):
        used = component[h] >= 0
        which = component[h][used]
        encode[h, used] = code.encode.float()[which]
        offset[h, used] = code.offset.float()[which]
        top[h, used] = (2.0 ** code.bits.float() - 1)[which]
        decode[h, used] = code.decode.float()[which] * (2.0 ** shift[h][used].float())[:, None]
        constant[h] += centres[h] @ decode[h]
    parts = (encode.transpose(1, 2), offset, top, shift.int(), decode, constant, decode.half())
    return KindMatrices(*(p.to(device) for p in parts))


def _index(codes: Sequence[LinearCode], device: torch.device | str) -> KindMatrices:
    encode = torch.stack([c.encode.float() for c in codes]).transpose(1, 2)
    offset = torch.stack([c.offset.float() for c in codes])
    decode = torch.stack([c.decode.float() for c in codes])
    constant = torch.stack([c.constant.float() for c in codes])
    top, shift = torch.full_like(offset, 15.0), torch.zeros_like(offset, dtype=torch.int32)
    return KindMatrices(*(p.to(device) for p in (encode, offset, top, shift, decode, constant, decode.half())))
