"""A basis in product form: what a profile's file holds of a basis that spans many layers.

Analysis rows are outer rows times block-diagonal inner rows (a block a layer), and so are synthesis rows; both factors
are kept as integers with one scale a row. A dense basis over 32 layers takes many times more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectralquant.errors import ProfileError

COARSE, FINE = 127.0, 32767.0
PARTS = ("fine", "coarse", "scale")
MATRICES = ("inner_analysis", "inner_synthesis", "outer_analysis", "outer_synthesis")


@dataclass(frozen=True)
class IntegerRows:
    """Rows of a matrix as integers: the first K of 16 bits, the others of 8, each times its own scale.

    fine: int16 `[K, p]`, coarse: int8 `[R − K, p]`, scale: float32 `[R]`. What a row multiplies may be a hundred steps
    large in the leading components, where 8 bits would leave an error that shows.
    """

    fine: Tensor
    coarse: Tensor
    scale: Tensor

    @classmethod
    def of(cls, rows: Tensor, fine: int) -> IntegerRows:
        """Round each row to the nearest of 65,535 (the first `fine`) or 255 levels."""
        fine = min(fine, len(rows))
        top = torch.full((len(rows),), COARSE, device=rows.device)
        top[:fine] = FINE
        largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))
        scale = largest.clamp_min(1e-30).float() / top
        levels = (rows / scale[:, None].to(rows)).round()
        return cls(
            levels[:fine].clamp(-FINE, FINE).to(torch.int16), levels[fine:].clamp(-COARSE, COARSE).to(torch.int8), scale
        )

    def __len__(self) -> int:
        return len(self.scale)

    @property
    def width(self) -> int:
        """p, numbers in a row."""
        return self.coarse.shape[1]

    def dense(self) -> Tensor:
        """Float32 `[R, p]`."""
        return torch.cat([self.fine.float(), self.coarse.float()]) * self.scale[:, None]

    def picked(self, index: Tensor) -> IntegerRows:
        """Some of the rows, in rising order."""
        count = len(self.fine)
        first, rest = index[index < count], index[index >= count] - count
        return IntegerRows(self.fine[first], self.coarse[rest], self.scale[index])

    def to(self, device: torch.device | str) -> IntegerRows:
        """The same on a device."""
        return IntegerRows(self.fine.to(device), self.coarse.to(device), self.scale.to(device))


@dataclass(frozen=True)
class BasisFactors:
    """Product form of the basis of one group of layers: R kept components, R₁ inner ones.

    inner_analysis, inner_synthesis: `[R₁, C]`, layer after layer, `inner_ranks: int64 [layers]` of each. outer_analysis,
    outer_synthesis: `[R, R₁]`.
    """

    inner_analysis: IntegerRows
    inner_synthesis: IntegerRows
    inner_ranks: Tensor
    outer_analysis: IntegerRows
    outer_synthesis: IntegerRows

    def picked(self, index: Tensor) -> BasisFactors:
        """Some of the R components, in rising order."""
        return replace(
            self,
            outer_analysis=self.outer_analysis.picked(index),
            outer_synthesis=self.outer_synthesis.picked(index),
        )

    def to(self, device: torch.device | str) -> BasisFactors:
        """The same on a device; `inner_ranks` stay where they are."""
        return replace(self, **{name: getattr(self, name).to(device) for name in MATRICES})

    def outer(self, kind: str) -> Tensor:
        """Outer rows float32 `[R, R₁]` of "analysis" or "synthesis".

        Both were rounded, each for itself, and no longer undo each other. The rows for analysis are mended by one step of
        Newton's iteration for an inverse (Schulz 1933): what is coded is then right for the rounded synthesis.
        """
        rows: Tensor = getattr(self, f"outer_{kind}").dense()
        if kind == "synthesis":
            return rows
        return 2 * rows - (rows @ self.outer_synthesis.dense().T) @ rows

    def rows(self, kind: str) -> Tensor:
        """Dense rows float32 `[R, layers·C]` of "analysis" or "synthesis"."""
        inner, rows = getattr(self, f"inner_{kind}"), self.outer(kind)
        counts, width = self.inner_ranks.tolist(), inner.width
        out: Tensor = rows.new_empty(len(rows), len(counts) * width)
        column = 0
        for i, block in enumerate(inner.dense().split(counts)):
            out[:, i * width : (i + 1) * width] = rows[:, column : column + len(block)] @ block
            column += len(block)
        return out


@dataclass(frozen=True)
class SmallForm:
    """What a file holds of a basis of several layers: the factors of each group, and the token predictor `[P, F]` transposed.

    Rounding the predictor costs no error: what is coded is the difference from the rounded prediction.
    """

    groups: tuple[BasisFactors, ...]
    predictor: IntegerRows

    def rows(self, kind: str) -> Tensor:
        """Unit rows float16 `[R, p]` of "analysis" or "synthesis"."""
        return unit_rows(torch.cat([factors.rows(kind) for factors in self.groups]))[0]

    def dense_predictor(self) -> Tensor:
        """Float16 `[F, P]`."""
        return self.predictor.dense().T.half().contiguous()


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of norm 1 in half precision, and the norms float32."""
    norm = rows.norm(dim=1).clamp_min(1e-30)
    return (rows / norm[:, None]).half(), norm


def small_tensors(prefix: str, form: SmallForm) -> dict[str, Tensor]:
    """What a file holds in the place of analysis, synthesis and predictor."""
    out = _row_tensors(f"{prefix}.predictor", form.predictor)
    for i, factors in enumerate(form.groups):
        out[f"{prefix}.{i}.inner_ranks"] = factors.inner_ranks
        for name in MATRICES:
            out |= _row_tensors(f"{prefix}.{i}.{name}", getattr(factors, name))
    return {name: tensor.detach().cpu().contiguous() for name, tensor in out.items()}


def small_form_in(prefix: str, tensors: dict[str, Tensor]) -> SmallForm | None:
    """What `small_tensors` wrote, or None for a basis that a file holds as it is.

    Raises:
        ProfileError: its parts do not fit each other or the basis's ranks.
    """
    if f"{prefix}.0.inner_ranks" not in tensors:
        return None
    ranks = tensors.get(f"{prefix}.ranks")
    if ranks is None or ranks.dim() != 1 or ranks.dtype != torch.int64:
        raise ProfileError(f"The profile's tensor file is damaged: {prefix}.ranks is no list of ranks.")
    found = []
    try:
        predictor = _rows_in(f"{prefix}.predictor", tensors)
        for i in range(len(ranks)):
            parts = {name: _rows_in(f"{prefix}.{i}.{name}", tensors) for name in MATRICES}
            found.append(BasisFactors(inner_ranks=tensors[f"{prefix}.{i}.inner_ranks"], **parts))
    except KeyError as error:
        raise ProfileError(f"The profile's tensor file lacks {error}: it is damaged.") from error
    if not _sound(predictor, predictor) or not all(map(_fit, found, ranks.tolist())):
        raise ProfileError(f"The profile's tensor file is damaged: the factors of {prefix} do not fit each other.")
    return SmallForm(tuple(found), predictor)


def _row_tensors(prefix: str, rows: IntegerRows) -> dict[str, Tensor]:
    return {f"{prefix}.{part}": getattr(rows, part) for part in PARTS}


def _rows_in(prefix: str, tensors: dict[str, Tensor]) -> IntegerRows:
    return IntegerRows(*(tensors[f"{prefix}.{part}"] for part in PARTS))


def _fit(factors: BasisFactors, rank: int) -> bool:
    counts, inner, outer = factors.inner_ranks, factors.inner_analysis, factors.outer_analysis
    pairs = ((inner, inner), (factors.inner_synthesis, inner), (outer, outer), (factors.outer_synthesis, outer))
    return (
        all(_sound(rows, like) for rows, like in pairs)
        and counts.dim() == 1
        and counts.dtype == torch.int64
        and bool((counts >= 0).all())
        and int(counts.sum()) == len(inner) == outer.width
        and len(outer) == rank
    )


def _sound(rows: IntegerRows, like: IntegerRows) -> bool:
    kinds = ((rows.fine, torch.int16, 2), (rows.coarse, torch.int8, 2), (rows.scale, torch.float32, 1))
    return (
        all(part.dtype == kind and part.dim() == axes for part, kind, axes in kinds)
        and rows.fine.shape[1] == rows.coarse.shape[1] == like.width
        and len(rows.fine) + len(rows.coarse) == len(rows.scale) == len(like.scale)
        and bool(rows.scale.isfinite().all())
    )
