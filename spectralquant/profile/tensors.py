"""The tensors of a calibration profile, tier by tier, and their names in the safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from spectralquant.errors import ProfileError
from spectralquant.profile.factors import SmallForm, small_form_in, small_tensors

KINDS = ("key", "value")
SMALL = ("analysis", "synthesis", "predictor")


@dataclass(frozen=True)
class StoredBasis:
    """Basis of all P coordinates in groups of p; R kept components, group after group.

    analysis, synthesis: float16 `[R, p]` unit rows. gain, back: float32 `[R]`: coefficients are
    gain · (analysis · x), x is synthesisᵀ · (back · coefficients). mean: float32 `[P]`. ranks: int64 `[P/p]`.
    variance: float32 `[R]` of the coefficients. predictor: float16 `[F, P]`, or `[0, P]` for none. small: what a file holds
    in the place of analysis, synthesis and predictor (see `profile.factors`), or None where it holds these.
    """

    analysis: Tensor
    synthesis: Tensor
    gain: Tensor
    back: Tensor
    mean: Tensor
    ranks: Tensor
    variance: Tensor
    predictor: Tensor
    small: SmallForm | None = None


@dataclass(frozen=True)
class ColdTier:
    """Entropy-coded tier. Coefficients are in units of the base step.

    centroids: float32 `[R]` per kind. choice: uint8 `[10, R]` per kind, a row for
    each importance class and one for tokens unseen (older profiles: `[9, R]`). tables: float32 `[K, 32]`. class_tables:
    float32 `[2, 9]`. importance_weight: float32 `[L·H + 2, 2]`; importance_bias: `[2]`.
    embedding_projection: `[hidden, d]`, or `[0, 0]` for none. leading: int64 `[2, n]`, components of keys and of values from
    which importance is predicted where no attention is known (importance_weight is `[4·n + 2, 2]` then), or None.
    """

    key: StoredBasis
    value: StoredBasis
    key_centroid: Tensor
    value_centroid: Tensor
    key_choice: Tensor
    value_choice: Tensor
    tables: Tensor
    class_tables: Tensor
    importance_weight: Tensor
    importance_bias: Tensor
    embedding_projection: Tensor
    leading: Tensor | None = None


@dataclass(frozen=True)
class FixedTier:
    """Fixed-rate tier (warm, hot). Coefficients are in units of each component's standard deviation.

    key_bits, value_bits: uint8 `[R]`, bits of each kept component (FrequencyMask).
    key_codebooks, value_codebooks: float32 `[Σ 2^bits]`, the components' reconstruction points one after the other.
    """

    key: StoredBasis
    value: StoredBasis
    key_bits: Tensor
    value_bits: Tensor
    key_codebooks: Tensor
    value_codebooks: Tensor


@dataclass(frozen=True)
class SplitTier:
    """A tier of a model whose layers do not read equally far back: `parts[i]` codes `layers[i]` alone. Layers that are never
    coded (their window is no larger than what stays exact) are in none.
    """

    layers: tuple[tuple[int, ...], ...]
    parts: tuple[ColdTier, ...] | tuple[FixedTier, ...]


@dataclass(frozen=True)
class HeadSpectra:
    """Per-head spectra, for `SpectralHead`, the rank tables (method.md section 2) and the cold tier's second stage.

    basis, synthesis: float16 `[2, L, Hk, D, D]` of unit rows and columns (index 0 keys, 1 values); gain: float32
    `[2, L, Hk, D]`, so that gain · basis · x has unit metric (of layers with a step of their own, in units of that); variance: float32 `[2, L, Hk, D]` in units of the metric. entropy: float32 `[L, H]`, mean attention entropy in nats. rank, bits: float32 `[2, L, Hk]`.
    """

    basis: Tensor
    synthesis: Tensor
    gain: Tensor
    variance: Tensor
    entropy: Tensor
    rank: Tensor
    bits: Tensor

    def part(self, layers: Sequence[int]) -> HeadSpectra:
        """The heads of some layers."""
        index = torch.tensor(layers)
        picked = {f.name: getattr(self, f.name) for f in fields(self)}
        return HeadSpectra(**{k: t.index_select(0 if k == "entropy" else 1, index) for k, t in picked.items()})


def layer_columns(layers: Sequence[int], layer_width: int) -> Tensor:
    """Coordinates of some layers, in their order."""
    return torch.cat([torch.arange(i * layer_width, (i + 1) * layer_width) for i in layers])


def fixed_part(tier: FixedTier, layer_width: int, layers: Sequence[int]) -> FixedTier:
    """A fixed-rate tier's tensors for some layers; its bases lie within a layer each."""
    parts: dict[str, Any] = {}
    for kind in KINDS:
        basis, bits, points = (getattr(tier, f"{kind}{end}") for end in ("", "_bits", "_codebooks"))
        per_layer = layer_width // basis.analysis.shape[1]
        spans = torch.cat([torch.arange(i * per_layer, (i + 1) * per_layer) for i in layers])
        rows = _picked(basis.ranks, spans)
        columns = layer_columns(layers, layer_width)
        by_row = {name: getattr(basis, name)[rows] for name in ("analysis", "synthesis", "gain", "back", "variance")}
        parts[kind] = StoredBasis(
            **by_row, mean=basis.mean[columns], ranks=basis.ranks[spans], predictor=basis.predictor[:, columns]
        )
        parts[f"{kind}_bits"] = bits[rows]
        parts[f"{kind}_codebooks"] = points[_picked(2 ** bits.long(), rows)]
    return FixedTier(**parts)


def _picked(sizes: Tensor, which: Tensor) -> Tensor:
    """Indices of the entries of runs `which`, where runs of `sizes` entries follow each other."""
    starts = sizes.cumsum(0) - sizes
    return torch.cat(
        [torch.arange(int(starts[i]), int(starts[i] + sizes[i])) for i in which] or [torch.zeros(0).long()]
    )


TIERS = {"cold": ColdTier, "warm": FixedTier, "hot": FixedTier}


def tier_part(
    tier: ColdTier | FixedTier | SplitTier, layers: Sequence[int], total: int, layer_width: int
) -> ColdTier | FixedTier | None:
    """A tier's tensors for some of the model's `total` layers, or None where its bases mix them with others or leave them
    out.
    """
    if isinstance(tier, SplitTier):
        at = next((i for i, own in enumerate(tier.layers) if own == tuple(layers)), None)
        return None if at is None else tier.parts[at]
    if tuple(layers) == tuple(range(total)):
        return tier
    return fixed_part(tier, layer_width, layers) if isinstance(tier, FixedTier) else None


def flatten(prefix: str, part: Any) -> dict[str, Tensor]:
    """Named tensors of a (nested) dataclass of tensors."""
    out: dict[str, Tensor] = {}
    if isinstance(part, SplitTier):
        for i, (layers, each) in enumerate(zip(part.layers, part.parts, strict=True)):
            out |= {f"{prefix}.{i}.layers": torch.tensor(layers), **flatten(f"{prefix}.{i}", each)}
        return out
    for f in fields(part):
        value = getattr(part, f.name)
        if isinstance(part, StoredBasis) and part.small is not None and f.name in SMALL:
            continue
        if value is None:
            continue
        if isinstance(value, SmallForm):
            out |= small_tensors(prefix, value)
        elif isinstance(value, Tensor):
            out[f"{prefix}.{f.name}"] = value.detach().cpu().contiguous()
        else:
            out |= flatten(f"{prefix}.{f.name}", value)
    return out


def unflatten(prefix: str, kind: Any, tensors: dict[str, Tensor]) -> Any:
    """Rebuild what `flatten` took apart.

    Raises:
        ProfileError: a tensor is missing.
    """
    if f"{prefix}.0.layers" in tensors:
        count = sum(name.startswith(prefix) and name.endswith(".layers") for name in tensors)
        named = [tensors.get(f"{prefix}.{i}.layers") for i in range(count)]
        layers = [each for each in named if each is not None and each.dtype == torch.int64 and each.dim() == 1]
        if len(layers) < count:
            raise ProfileError(f"The profile's tensor file does not say which layers {prefix!r} codes: it is damaged.")
        parts = tuple(unflatten(f"{prefix}.{i}", kind, tensors) for i in range(count))
        return SplitTier(tuple(tuple(each.tolist()) for each in layers), parts)
    values = {}
    if kind is StoredBasis and (small := small_form_in(prefix, tensors)) is not None:
        values = {"small": small, "predictor": small.dense_predictor()}
        values |= {name: small.rows(name) for name in ("analysis", "synthesis")}
    for f in fields(kind):
        name = f"{prefix}.{f.name}"
        if f.name in values or f.name == "small":
            continue
        if f.type in ("StoredBasis", StoredBasis):
            values[f.name] = unflatten(name, StoredBasis, tensors)
        elif name in tensors:
            values[f.name] = tensors[name]
        elif f.default is None:
            values[f.name] = None
        else:
            raise ProfileError(f"The profile's tensor file lacks {name!r}: it is damaged or from another version.")
    return kind(**values)


def on_cpu(tier: ColdTier | FixedTier) -> ColdTier | FixedTier:
    """The same tier with all tensors on the CPU, as it would be loaded from a file."""
    same: ColdTier | FixedTier = unflatten("tier", type(tier), flatten("tier", tier))
    return same


def empty() -> Tensor:
    """Stands for an absent optional matrix."""
    return torch.zeros(0, 0, dtype=torch.float32)
