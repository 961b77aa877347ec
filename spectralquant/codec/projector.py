"""`SpectralProjector`: keys or values of all layers to spectral coefficients and back, group by group.

y = A(x − μ − f·W), x̂ = S ŷ + μ + f·W, where f are token features (method.md section 2; W is our addition). Rows of A
and columns of S are kept with unit norm in half precision and a float32 gain each, so half precision costs nothing
visible at these rates. Coefficients are in units of the profile's base step: rounding them is the quantizer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.codec.buffers import empty_floats
from spectralquant.codec.cold.features import TokenProducts, TokenRows
from spectralquant.codec.products import product
from spectralquant.geometry import BLOCK
from spectralquant.profile.tensors import StoredBasis

EXACT_VARIANCE = 64.0
SLICE_SCALARS = 1 << 19


@dataclass(frozen=True)
class Sketch:
    """Rows `[S, P]` that are multiplied with centred coordinates, and what token features predict of that, `[2·d, S]`."""

    rows: Tensor
    predicted: Tensor | None


class SpectralProjector:
    """Analysis and synthesis on one device, with products in `dtype`.

    In bfloat16, whose results have three digits, coefficients with a standard deviation over eight steps are computed in
    float32 all the same. In float16 the synthesis matrix is the profile's own, and `back` weights the coefficients.
    """

    def __init__(
        self, tensors: StoredBasis, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.analysis = tensors.analysis.to(device, dtype)
        self.back = tensors.back.to(device) if dtype == torch.float16 else None
        if self.back is None:
            self.synthesis = (tensors.synthesis.to(device, torch.float32) * tensors.back.to(device)[:, None]).to(dtype)
        else:
            self.synthesis = tensors.synthesis.to(device)
        self.gain = tensors.gain.to(device)
        self.mean = tensors.mean.to(device)
        self.predictor = tensors.predictor.to(device, dtype) if len(tensors.predictor) else None
        self.ranks = tensors.ranks.tolist()
        self.span = self.analysis.shape[1]
        large = (
            tensors.variance > EXACT_VARIANCE if dtype == torch.bfloat16 else torch.zeros(self.rank, dtype=torch.bool)
        )
        self.exact = [torch.nonzero(part).squeeze(1).to(device) for part in large.split(self.ranks)]
        starts = [sum(self.ranks[:i]) for i in range(len(self.ranks))]
        self.exact_rows = [tensors.analysis.to(device)[e + s].float() for e, s in zip(self.exact, starts, strict=True)]

    @property
    def rank(self) -> int:
        """R, kept components over all groups."""
        return self.analysis.shape[0]

    def project(self, x: Tensor | Sequence[Tensor], features: TokenRows | None) -> Tensor:
        """Coefficients `[T, R]`, in units of the base step, of `x: [T, P]` (or parts of it) with token features.

        Each component's coefficients lie together in memory.
        """
        return self.project_with(x, features, None)[0]

    def project_with(
        self, x: Tensor | Sequence[Tensor], features: TokenRows | None, sketch: Sketch | None
    ) -> tuple[Tensor, Tensor | None]:
        """`project`, and the products `[T, S]` of a sketch's rows with the same centred coordinates."""
        parts = [x] if isinstance(x, Tensor) else x
        tokens = sum(map(len, parts))
        out = empty_floats(self.rank, tokens, device=self.mean.device)
        beside = None if sketch is None else torch.empty(tokens, len(sketch.rows), dtype=out.dtype, device=out.device)
        at = 0
        for part in parts:
            for first, last in self._slices(len(part)):
                some = part[first:last].to(out) - self.mean
                self._project(some, out[:, at : at + len(some)])
                if beside is not None and sketch is not None:
                    torch.mm(some, sketch.rows.T, out=beside[at : at + len(some)])
                at += len(some)
        if self.predictor is not None:
            known = _known(features)
            predicted = known.times(self.predicted_coefficients)
            for first in range(0, tokens, BLOCK):
                last = min(tokens, first + BLOCK)
                out[:, first:last] -= predicted.sum(first, last).T
            if beside is not None and sketch is not None and sketch.predicted is not None:
                beside -= known.times(sketch.predicted).sum(0, len(known.own))
        return out.mul_(self.gain[:, None]).T, beside

    @functools.cached_property
    def predicted_coefficients(self) -> Tensor:
        """What features predict of coefficients (before gains), `[2·d, R]`: A(x − μ − fW) = A(x − μ) − f(WAᵀ), where WAᵀ has a
        fraction of W's columns. It is made once, for what encoding 2·d tokens takes.
        """
        assert self.predictor is not None
        out = torch.empty(self.rank, len(self.predictor), dtype=torch.float32, device=self.mean.device)
        self._project(self.predictor.float(), out)
        return out.T.contiguous().to(self.analysis.dtype)

    def _project(self, x: Tensor, out: Tensor) -> None:
        at = 0
        for i, rank in enumerate(self.ranks):
            part = x[:, i * self.span : (i + 1) * self.span].T
            rows = out[at : at + rank]
            rows.copy_(_analysed(self.analysis[at : at + rank], part))
            if len(self.exact[i]):
                rows[self.exact[i]] = self.exact_rows[i] @ part
            at += rank

    def reconstruct(self, y: Tensor, features: TokenRows | None) -> Tensor:
        """Coordinates `[T, P]` of coefficients `y: [T, R]`."""
        base = self._base(features)
        out = empty_floats(len(y), len(self.mean), device=y.device)
        for first, last in self._slices(len(y)):
            some, at = out[first:last], 0
            more = self.mean.expand_as(some) if base is None else base.sum(first, last)
            for i, rank in enumerate(self.ranks):
                own = slice(i * self.span, (i + 1) * self.span)
                weighted = self._weighted(y[first:last, at : at + rank], slice(at, at + rank))
                some[:, own] = product(weighted, self.synthesis[at : at + rank])
                some[:, own] += more[:, own]
                at += rank
        return out

    def outside(self, rows: Tensor) -> Sketch:
        """What float32 `rows: [S, P]` see of coordinates after what the basis keeps of them is taken away."""
        out, at = rows.clone(), 0
        for i, rank in enumerate(self.ranks):
            part, own = slice(i * self.span, (i + 1) * self.span), slice(at, at + rank)
            back = self.gain[own] if self.back is None else self.gain[own] * self.back[own]
            seen = (rows[:, part] @ self.synthesis[own].float().T) * back
            out[:, part] -= seen @ self.analysis[own].float()
            at += rank
        return Sketch(out, None if self.predictor is None else self.predictor.float() @ out.T)

    def _slices(self, tokens: int) -> Iterator[tuple[int, int]]:
        """Tokens at a time, so few on a CPU that what is made for them stays in its cache."""
        size = tokens if self.mean.is_cuda else max(1, SLICE_SCALARS // len(self.mean))
        for first in range(0, tokens, max(1, size)):
            yield first, min(tokens, first + size)

    def columns(self, y: Tensor, features: TokenRows | None, start: int, stop: int) -> Tensor:
        """`reconstruct` for coordinates start … stop alone, `[T, stop − start]`: some of one group, or several whole ones.

        `y` is `[T, R]`, or for one group `[T, its rank]` with the group's own coefficients.
        """
        group = start // self.span
        if stop > (group + 1) * self.span:
            ends = range(start, stop, self.span)
            return torch.cat([self.columns(y, features, at, at + self.span) for at in ends], dim=1)
        rows = slice(sum(self.ranks[:group]), sum(self.ranks[: group + 1]))
        matrix = self.synthesis[rows, start - group * self.span : stop - group * self.span]
        own = y if y.shape[1] == rows.stop - rows.start else y[:, rows]
        out = product(self._weighted(own, rows), matrix).float()
        mean = self.mean[start:stop]
        if self.predictor is None:
            return out.add_(mean)
        return out.add_(_known(features).times(self.predictor[:, start:stop], mean).sum(0, len(out)))

    def _weighted(self, y: Tensor, rows: slice) -> Tensor:
        """Coefficients of some rows as the synthesis matrix takes them."""
        return y if self.back is None else y * self.back[rows]

    def _base(self, features: TokenRows | None) -> TokenProducts | None:
        """What is added to products: predictions and mean."""
        if self.predictor is None:
            return None
        return _known(features).times(self.predictor, self.mean)


def _known(features: TokenRows | None) -> TokenRows:
    if features is None:
        raise ValueError("this profile predicts from token ids, but the block carries none")
    return features


def _analysed(rows: Tensor, x: Tensor) -> Tensor:
    """Rows `[R, p]` @ coordinates float32 `[p, T]`."""
    if rows.dtype != torch.float16:
        return rows @ x.to(rows.dtype)
    return product(x.T, rows.T).T
