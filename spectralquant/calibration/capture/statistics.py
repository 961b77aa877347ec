"""Mergeable, resumable sums of calibration data.

Everything kept from the first pass is a sum over tokens, so two halves of a run add up to the whole and a killed
run goes on from its last checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.calibration.capture.symmetric import SymmetricSum
from spectralquant.profile.tensors import layer_columns

LEAST_METRIC = 1e-4


class SpanMoments:
    """n, Σx, and per span of coordinates Σxxᵀ and the metric sum, for one kind of tensor (keys or values).

    Coordinates are layer-major: layer·C + head·D + d. `spans` are equal, contiguous and cover all P coordinates.
    devices: of each layer, where the model is spread over several; a span's sums lie where its middle layer does, and what
    is asked for comes to `device`.
    """

    def __init__(
        self,
        width: int,
        span: int,
        device: torch.device | str = "cpu",
        devices: Sequence[torch.device | str] = (),
    ) -> None:
        if width % span:
            raise ValueError(f"span {span} does not divide width {width}")
        self.width, self.span = width, span
        self.count = 0
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        places = (
            [devices[(2 * i + 1) * len(devices) * span // (2 * width)] for i in range(width // span)] if devices else []
        )
        places = places or [device] * (width // span)
        self.second = [SymmetricSum(span, place) for place in places]
        self.metric = [SymmetricSum(span, place) for place in places]
        self.head_metric: Tensor | None = None
        self.least_metric = 0.0

    def add(self, x: Tensor, metric_rows: Tensor | None) -> None:
        """Add tokens `x: [T, P]`; `metric_rows: [T', P]` are the rows whose Gram matrix is the metric, or None."""
        self.count += x.shape[0]
        self.sum += x.sum(0, dtype=torch.float64)
        for i, second in enumerate(self.second):
            part = slice(i * self.span, (i + 1) * self.span)
            second.add(x[:, part])
        if metric_rows is not None:
            self.add_metric(metric_rows)

    def add_metric(self, rows: Tensor) -> None:
        """Add the Gram matrix of `rows: [T', P]` to the metric of tokens that are counted elsewhere."""
        for i, metric in enumerate(self.metric):
            metric.add(rows[:, i * self.span : (i + 1) * self.span])

    def merge(self, other: SpanMoments) -> None:
        """Add the sums of another run over other text."""
        if (other.width, other.span) != (self.width, self.span):
            raise ValueError("moments of different width or span cannot be merged")
        self.count += other.count
        self.sum += other.sum.to(self.sum.device)
        for own, theirs in zip(self.second + self.metric, other.second + other.metric, strict=True):
            own.merge(theirs)

    @property
    def mean(self) -> Tensor:
        """μ `[P]`, float64."""
        return self.sum / self.count

    def covariance(self, i: int) -> Tensor:
        """Centred covariance `[span, span]` of span i, float64."""
        mean = self.mean[i * self.span : (i + 1) * self.span]
        return self.second[i].dense().to(mean) / self.count - torch.outer(mean, mean)

    def metric_matrix(self, i: int) -> Tensor:
        """The metric `[span, span]` of span i per token, float64.

        Where `head_metric: [heads, D, D]` is set, it is block-diagonal with those blocks, one a head.
        """
        if self.head_metric is None:
            return self.metric[i].dense().to(self.sum) / self.count
        per_span = self.span // self.head_metric.shape[-1]
        return torch.block_diag(*self.head_metric[i * per_span : (i + 1) * per_span])

    @property
    def mean_metric(self) -> float:
        """The metric's mean diagonal entry per token: what an error of 1 in one coordinate costs on average."""
        if self.head_metric is not None:
            return self.head_metric.diagonal(dim1=-2, dim2=-1).mean().item()
        return sum(m.diagonal().sum(dtype=torch.float64).item() for m in self.metric) / (self.width * self.count)

    def groups(self, span: int, *, metric: bool) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Coordinates, covariance and metric (or None) of consecutive groups of `span` ≤ `self.span` coordinates.

        A group that costs nothing (a layer that nothing reads) is given `least_metric`: not 0, where no basis could be
        told from another, and far from 1, which would make it dearer than all others.
        """
        for start in range(0, self.width, span):
            own = self._metric_block(start, span) if metric else None
            if own is not None and own.diagonal().mean().item() < self.least_metric:
                own = own + self.least_metric * torch.eye(span, dtype=own.dtype, device=own.device)
            yield slice(start, start + span), self._covariance_block(start, span), own

    def _covariance_block(self, start: int, span: int) -> Tensor:
        i, at = divmod(start, self.span)
        mean = self.mean[start : start + span]
        return self.second[i].block(slice(at, at + span)).to(mean) / self.count - torch.outer(mean, mean)

    def _metric_block(self, start: int, span: int) -> Tensor:
        i, at = divmod(start, self.span)
        if self.head_metric is None:
            return self.metric[i].block(slice(at, at + span)).to(self.sum) / self.count
        return self.metric_matrix(i)[at : at + span, at : at + span]

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Named tensors for a checkpoint."""
        out = {f"{prefix}.sum": self.sum, f"{prefix}.count": torch.tensor(self.count)}
        for name, sums in (("second", self.second), ("metric", self.metric)):
            for i, one in enumerate(sums):
                for (a, b), tile in one.tiles.items():
                    out[f"{prefix}.{name}.{i}.{a}.{b}"] = tile
        return out

    def load_state(self, prefix: str, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.sum.copy_(state[f"{prefix}.sum"])
        self.count = int(state[f"{prefix}.count"])
        for name, sums in (("second", self.second), ("metric", self.metric)):
            for i, one in enumerate(sums):
                for (a, b), tile in one.tiles.items():
                    tile.copy_(state[f"{prefix}.{name}.{i}.{a}.{b}"])

    def part(self, layers: Sequence[int], layer_width: int) -> SpanMoments:
        """The moments of some layers; spans must lie within layers, or all layers be asked for in order."""
        if len(layers) * layer_width == self.width:
            return self
        per_layer = layer_width // self.span
        part = copy.copy(self)
        picked = [layer * per_layer + i for layer in layers for i in range(per_layer)]
        part.width = len(layers) * layer_width
        part.sum = torch.cat([self.sum[i * self.span : (i + 1) * self.span] for i in picked])
        part.second, part.metric = [self.second[i] for i in picked], [self.metric[i] for i in picked]
        if self.head_metric is not None:
            part.head_metric = self.head_metric[_heads(layers, self.head_metric, self.width // layer_width)]
        return part


def _heads(layers: Sequence[int], head_metric: Tensor, total_layers: int) -> Tensor:
    """Indices of the heads of some layers."""
    per_layer = len(head_metric) // total_layers
    return torch.cat([torch.arange(i * per_layer, (i + 1) * per_layer) for i in layers])


class GroupedMoments:
    """Moments of layers that fall into groups, spans never crossing from one to another; the interface of `SpanMoments`.

    layers: of each group; spans: each group's span width; devices: see `SpanMoments`.
    """

    def __init__(
        self,
        layer_width: int,
        layers: Sequence[Sequence[int]],
        spans: Sequence[int],
        device: torch.device | str = "cpu",
        devices: Sequence[torch.device | str] = (),
    ) -> None:
        self.layer_width, self.layers, self.device = layer_width, [tuple(part) for part in layers], device
        self.parts = [
            SpanMoments(len(p) * layer_width, s, device, [devices[i] for i in p] if devices else ())
            for p, s in zip(layers, spans, strict=True)
        ]
        self.columns = [layer_columns(part, layer_width).to(device) for part in layers]
        self.width = sum(part.width for part in self.parts)

    @property
    def count(self) -> int:
        """Tokens."""
        return self.parts[0].count

    @property
    def sum(self) -> Tensor:
        """Σx `[P]`, float64, in layer order."""
        total = torch.zeros(self.width, dtype=torch.float64, device=self.device)
        for columns, part in zip(self.columns, self.parts, strict=True):
            total[columns] = part.sum
        return total

    @property
    def mean(self) -> Tensor:
        """μ `[P]`, float64, in layer order."""
        return self.sum / self.count

    @property
    def head_metric(self) -> Tensor | None:
        """See `SpanMoments.metric_matrix`."""
        return self.parts[0].head_metric

    @head_metric.setter
    def head_metric(self, value: Tensor) -> None:
        for layers, part in zip(self.layers, self.parts, strict=True):
            part.head_metric = value[_heads(layers, value, self.width // self.layer_width)]

    @property
    def mean_metric(self) -> float:
        """See `SpanMoments.mean_metric`."""
        return sum(part.mean_metric * part.width for part in self.parts) / self.width

    @property
    def least_metric(self) -> float:
        """See `SpanMoments.groups`."""
        return self.parts[0].least_metric

    @least_metric.setter
    def least_metric(self, value: float) -> None:
        for part in self.parts:
            part.least_metric = value

    def add(self, x: Tensor, metric_rows: Tensor | None) -> None:
        """See `SpanMoments.add`."""
        for columns, part in zip(self.columns, self.parts, strict=True):
            part.add(x[:, columns], None if metric_rows is None else metric_rows[:, columns])

    def add_metric(self, rows: Tensor) -> None:
        """See `SpanMoments.add_metric`."""
        for columns, part in zip(self.columns, self.parts, strict=True):
            part.add_metric(rows[:, columns])

    def merge(self, other: GroupedMoments) -> None:
        """See `SpanMoments.merge`."""
        for own, theirs in zip(self.parts, other.parts, strict=True):
            own.merge(theirs)

    def groups(self, span: int, *, metric: bool) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """See `SpanMoments.groups`, for spans within a layer, in layer order."""
        groups = []
        for layers, part in zip(self.layers, self.parts, strict=True):
            for place, covariance, matrix in part.groups(span, metric=metric):
                layer, offset = divmod(place.start, self.layer_width)
                start = layers[layer] * self.layer_width + offset
                groups.append((slice(start, start + span), covariance, matrix))
        yield from sorted(groups, key=lambda each: each[0].start)

    def part(self, layers: Sequence[int], layer_width: int) -> SpanMoments:
        """The moments of one of the groups."""
        return self.parts[self.layers.index(tuple(layers))]

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Named tensors for a checkpoint."""
        return {k: t for i, part in enumerate(self.parts) for k, t in part.state(f"{prefix}.{i}").items()}

    def load_state(self, prefix: str, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for i, part in enumerate(self.parts):
            part.load_state(f"{prefix}.{i}", state)


@dataclass
class EntropySum:
    """Sum of per-head attention entropies `[L, H]` over steps."""

    total: Tensor
    steps: int = 0

    def add(self, entropy: Tensor) -> None:
        self.total += entropy.to(self.total)
        self.steps += 1

    def merge(self, other: EntropySum) -> None:
        self.total += other.total.to(self.total.device)
        self.steps += other.steps

    @property
    def mean(self) -> Tensor:
        return self.total / max(1, self.steps)


class FeatureMoments:
    """Sums that a linear predictor of keys and values from token features needs (see `codec.features`).

    Features `[T, F]`, targets `[T, 2P]` (keys, then values).
    """

    def __init__(self, features: int, targets: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.sum = torch.zeros(features, dtype=torch.float64, device=device)
        self.gram = SymmetricSum(features, device)
        self.cross = torch.zeros(features, targets, device=device)

    def add(self, features: Tensor, targets: tuple[Tensor, Tensor]) -> None:
        """Add tokens: features `[T, F]`, keys and values each `[T, P]`."""
        self.add_features(features)
        for kind, rows in enumerate(targets):
            self.add_cross(features, rows, kind)

    def add_features(self, features: Tensor) -> None:
        """Add the part of `add` that needs no targets."""
        self.count += features.shape[0]
        self.sum += features.sum(0, dtype=torch.float64)
        self.gram.add(features)

    def add_cross(self, features: Tensor, targets: Tensor, kind: int) -> None:
        """Add the part of `add` that needs the keys (kind 0) or values (kind 1) `[T, P]` alone."""
        half = self.cross.shape[1] // 2
        self.cross[:, kind * half : (kind + 1) * half].addmm_(features.T, targets)

    def part(self, columns: Tensor) -> FeatureMoments:
        """The sums for some of the P coordinates."""
        half = self.cross.shape[1] // 2
        columns = columns.to(self.cross.device)
        part = copy.copy(self)
        part.cross = self.cross[:, torch.cat([columns, columns + half])]
        return part

    def merge(self, other: FeatureMoments) -> None:
        """Add the sums of another run."""
        self.count += other.count
        self.sum += other.sum.to(self.sum.device)
        self.gram.merge(other.gram)
        self.cross += other.cross.to(self.cross.device)

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Named tensors for a checkpoint."""
        out = {f"{prefix}.sum": self.sum, f"{prefix}.count": torch.tensor(self.count), f"{prefix}.cross": self.cross}
        return out | {f"{prefix}.gram.{a}.{b}": tile for (a, b), tile in self.gram.tiles.items()}

    def load_state(self, prefix: str, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.count = int(state[f"{prefix}.count"])
        self.sum.copy_(state[f"{prefix}.sum"])
        self.cross.copy_(state[f"{prefix}.cross"])
        for (a, b), tile in self.gram.tiles.items():
            tile.copy_(state[f"{prefix}.gram.{a}.{b}"])
