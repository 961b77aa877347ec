"""The large products of fused coding: by dense bases, or by the two factors that a profile holds of a basis over many layers.

A basis over P coordinates takes R·P multiplications a token. In product form (`profile.factors`) it is R·P′ across layers and
P′·C within them, a third or less. Factors are float16 with unit inner rows, each layer's inner components padded to a multiple of
eight, as tensor cores want them; padding is zeros.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.codec.cold.fused.layer_slots import groups_of
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.products import half_product
from spectralquant.codec.projector import SpectralProjector
from spectralquant.profile.factors import BasisFactors, SmallForm, unit_rows

INNER_ALIGNED = 8
STEP_COLUMNS = 8192
Gather = Callable[[slice, Tensor], None]  # fills float16 `[N', columns]` with coordinates


@dataclass(frozen=True)
class DenseBasis:
    """One kind's basis as the projector holds it. width: C, coordinates of a layer."""

    projector: SpectralProjector
    width: int

    def synthesize(self, y: Tensor, columns: slice) -> Tensor:
        """Coordinates float16 `[N', columns]` of weighted coefficients float16 y: `[R, N']`."""
        out = torch.empty(y.shape[1], columns.stop - columns.start, dtype=torch.float16, device=y.device)
        for group, own, at in groups_of(self.projector.ranks, self.projector.span, columns):
            into = out[:, at : at + own.stop - own.start]
            if group.stop > group.start:
                torch.mm(y[group].T, self.projector.synthesis[group, own], out=into)
            else:
                into.zero_()
        return out

    def analyze(self, gather: Gather, out: Tensor) -> None:
        """Coefficients before gains into float32 out: `[R, N']`."""
        p = self.projector
        unit = max(p.span, self.width)
        x = torch.empty(out.shape[1], unit, dtype=torch.float16, device=out.device)
        for start in range(0, len(p.mean), unit):
            columns = slice(start, start + unit)
            gather(columns, x)
            for rows, own, at in groups_of(p.ranks, p.span, columns):
                if rows.stop > rows.start:
                    half_product(p.analysis[rows], x[:, at : at + own.stop - own.start].T, out[rows])


class FactoredBasis:
    """The same by factors. width: C; step: coordinates that are gathered at once."""

    def __init__(self, small: SmallForm, width: int, device: torch.device, step: int) -> None:
        self.width, self.step = width, step
        self.groups = [_Group.of(factors, device) for factors in small.groups]
        self.layers = len(self.groups[0].counts)

    def synthesize(self, y: Tensor, columns: slice) -> Tensor:
        """See `DenseBasis.synthesize`; columns are those of whole layers."""
        out = torch.empty(y.shape[1], columns.stop - columns.start, dtype=torch.float16, device=y.device)
        first, last, at, row = columns.start // self.width, columns.stop // self.width, 0, 0
        for number, group in enumerate(self.groups):
            begin = max(0, first - number * self.layers)
            end = min(self.layers, last - number * self.layers)
            if begin < end:
                inner = group.span(begin, end)
                z = y[row : row + group.rank].T @ group.outer_synthesis[:, inner]
                for layer in range(begin, end):
                    own = group.span(layer, layer + 1)
                    part = z[:, own.start - inner.start : own.stop - inner.start]
                    torch.mm(part, group.inner_synthesis[own], out=out[:, at : at + self.width])
                    at += self.width
            row += group.rank
        return out

    def analyze(self, gather: Gather, out: Tensor) -> None:
        """See `DenseBasis.analyze`."""
        step = max(1, self.step // self.width)
        row = 0
        for number, group in enumerate(self.groups):
            z = torch.empty(out.shape[1], group.inner, dtype=torch.float16, device=out.device)
            for begin in range(0, self.layers, step):
                end, base = min(self.layers, begin + step), number * self.layers
                x = torch.empty(len(z), (end - begin) * self.width, dtype=torch.float16, device=out.device)
                gather(slice((base + begin) * self.width, (base + end) * self.width), x)
                for layer in range(begin, end):
                    own = group.span(layer, layer + 1)
                    part = x[:, (layer - begin) * self.width : (layer - begin + 1) * self.width]
                    torch.mm(part, group.inner_analysis[own].T, out=z[:, own])
            half_product(group.outer_analysis, z.T, out[row : row + group.rank])
            row += group.rank


@dataclass(frozen=True)
class _Group:
    """Factors of one group of layers: outer `[R, P″]`, inner `[P″, C]`; counts: inner components of each layer, padded."""

    outer_analysis: Tensor
    outer_synthesis: Tensor
    inner_analysis: Tensor
    inner_synthesis: Tensor
    counts: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.outer_analysis)

    @property
    def inner(self) -> int:
        return sum(self.counts)

    def span(self, first: int, last: int) -> slice:
        """Inner components of layers first … last."""
        return slice(sum(self.counts[:first]), sum(self.counts[:last]))

    @classmethod
    def of(cls, factors: BasisFactors, device: torch.device) -> _Group:
        """Such that outer · inner has unit rows."""
        factors = factors.to(device)
        counts = factors.inner_ranks.tolist()
        wide = [-(-n // INNER_ALIGNED) * INNER_ALIGNED for n in counts]
        place = torch.cat([torch.arange(n) + sum(wide[:i]) for i, n in enumerate(counts)]).to(device)
        parts = []
        for kind in ("analysis", "synthesis"):
            inner, outer = getattr(factors, f"inner_{kind}").dense(), factors.outer(kind)
            norms = _row_norms(inner, outer, counts)
            inner, length = unit_rows(inner)
            outer = outer * length / norms[:, None]
            spread = torch.zeros(len(outer), sum(wide), dtype=torch.float16, device=device)
            spread[:, place] = outer.half()
            tall = torch.zeros(sum(wide), inner.shape[1], dtype=torch.float16, device=device)
            tall[place] = inner
            parts.append((spread, tall))
        (outer_a, inner_a), (outer_s, inner_s) = parts
        return cls(outer_a, outer_s, inner_a, inner_s, tuple(wide))


def _row_norms(inner: Tensor, outer: Tensor, counts: list[int]) -> Tensor:
    """Norms `[R]` of outer · inner, block by block."""
    total, column = outer.new_zeros(len(outer)), 0
    for block in inner.split(counts):
        total += (outer[:, column : column + len(block)] @ block).square().sum(1)
        column += len(block)
    return total.sqrt().clamp_min(1e-30)


Basis = DenseBasis | FactoredBasis
_bases: weakref.WeakKeyDictionary[SpectralCodec, tuple[Basis, Basis]] = weakref.WeakKeyDictionary()


def bases_of(codec: SpectralCodec) -> tuple[Basis, Basis]:
    """Of keys and values; made once a codec."""
    if codec not in _bases:
        width = codec.geometry.layer_width
        keys, values = codec.projectors
        _bases[codec] = (
            fused_basis(keys, codec.tier.key.small, width, STEP_COLUMNS),
            fused_basis(values, codec.tier.value.small, width, STEP_COLUMNS),
        )
    return _bases[codec]


def fused_basis(projector: SpectralProjector, small: SmallForm | None, width: int, step: int) -> Basis:
    """The form with fewer multiplications, where there are two."""
    if small is None or not small.groups or projector.span % width:
        return DenseBasis(projector, width)
    inner = sum(f.outer_analysis.width * len(f.outer_analysis) for f in small.groups) + sum(
        len(f.inner_analysis) * width for f in small.groups
    )
    if inner >= projector.rank * projector.span:
        return DenseBasis(projector, width)
    return FactoredBasis(small, width, projector.mean.device, step)
