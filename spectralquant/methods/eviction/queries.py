"""What evicting methods may know of tokens beside the attention they received: keys, values, and the queries so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spectralquant.geometry import SINKS
from spectralquant.rotary import Rotation, apply_rope

FutureRotations = Callable[[int, int], Sequence[Rotation | None]]


@dataclass(frozen=True)
class Content:
    """n consecutive tokens of one stream in some layers.

    keys (after RoPE), values: float32 `[L, Hk, n, D]`. held: bool `[L, Hk, n]`, what has not been dropped.
    mean, covariance: of all queries so far from the fifth token on, before RoPE, float32 `[L, H, D]` and `[L, H, D, D]`.
    scaling: of each layer's scores. rotations: each layer's (None: no RoPE), averaged over positions start … stop.
    """

    keys: Tensor
    values: Tensor
    held: Tensor
    mean: Tensor
    covariance: Tensor
    scaling: tuple[float, ...]
    rotations: Callable[[int, int], list[Rotation | None]]

    def future_queries(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Mean and covariance after RoPE, were the queries so far to stand at positions start … stop on average."""
        pairs = [
            (mean, spread) if turn is None else (apply_rope(mean, turn), turned_twice(spread, turn))
            for mean, spread, turn in zip(self.mean, self.covariance, self.rotations(start, stop), strict=True)
        ]
        return torch.stack([mean for mean, _ in pairs]), torch.stack([spread for _, spread in pairs])


def turned_twice(matrix: Tensor, rotation: Rotation) -> Tensor:
    """R M Rᵀ of matrices `[..., D, D]`."""
    return apply_rope(apply_rope(matrix, rotation).transpose(-1, -2), rotation).transpose(-1, -2)


@dataclass
class QueryHistory:
    """Running sums over queries before RoPE for all streams, float64 `[L, B, H, D]` and `[L, B, H, D, D]`.

    future: every layer's rotations at positions start … stop. The first four queries are left out, as kvpress does.
    """

    sums: Tensor
    products: Tensor
    future: FutureRotations
    scaling: list[float] = field(default_factory=list)
    counted: int = 0

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int], device: torch.device, future: FutureRotations) -> QueryHistory:
        """Nothing seen yet. shape: L, B, H, D."""
        sums = torch.zeros(shape, dtype=torch.float64, device=device)
        products = torch.zeros((*shape, shape[-1]), dtype=torch.float64, device=device)
        return cls(sums, products, future, [1.0] * shape[0])

    def add(self, layer: int, queries: Tensor, start: int, scaling: float) -> None:
        """Add queries `[B, H, T, D]` before RoPE from position `start` on; a batch of one stands for all streams."""
        some = queries[:, :, max(0, SINKS - start) :].to(self.sums)
        self.sums[layer] += some.sum(2)
        self.products[layer] += some.transpose(2, 3) @ some
        self.scaling[layer] = scaling
        self.counted = max(self.counted, start + queries.shape[2] - SINKS)

    def content(self, layers: Sequence[int], stream: int, keys: Tensor, values: Tensor, held: Tensor) -> Content:
        """What is known of tokens `[L, Hk, n, D]` of a stream in some layers."""
        index = list(layers)
        mean = self.sums[index, stream] / self.counted
        covariance = self.products[index, stream] / self.counted - mean[..., :, None] * mean[..., None, :]
        return Content(
            keys,
            values,
            held,
            mean.float(),
            covariance.float(),
            tuple(self.scaling[i] for i in index),
            lambda start, stop: self._average(index, start, stop),
        )

    def _average(self, layers: Sequence[int], start: int, stop: int) -> list[Rotation | None]:
        every = self.future(start, stop)
        means = {id(r): Rotation(r.cos.mean(0), r.sin.mean(0), r.pairs) for r in every if r is not None}
        return [None if every[i] is None else means[id(every[i])].to(self.sums.device) for i in layers]
