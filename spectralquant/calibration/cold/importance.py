"""Fitting the importance regression (method.md section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.codec.cold.importance import ImportanceModel

RIDGE = 1e-2


def log_importance(key_squares: Tensor, value_squares: Tensor) -> Tensor:
    """log w `[T, 2]`: log mean squared loss gradient over the kept components, squared gradients `[T, R]`."""
    return torch.stack([torch.log(g.mean(1) + 1e-20) for g in (key_squares, value_squares)], dim=1)


def fit_importance(features: Tensor, log_weight: Tensor, group: Tensor) -> tuple[ImportanceModel, list[float]]:
    """Ridge regression of log w on runtime features.

    features: `[N, F]`; log_weight: `[N, 2]`; group: int64 `[N]`, the block a token stands in. Later blocks of a window
    have fewer queries after them, hence smaller gradients: each group is centred first, so position is not learnt.

    Returns:
        the model, and R² for keys and values on the fitted tokens.
    """
    y = _centre_groups(log_weight.double(), group)
    x = features.double()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    z = (x - mean) / scale
    gram = z.T @ z / len(z) + RIDGE * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    weight = torch.linalg.solve(gram, z.T @ y / len(z))
    residual = (y - z @ weight).square().mean(0)
    r2 = 1 - residual / y.square().mean(0).clamp_min(1e-12)
    weight = weight / scale[:, None]
    return ImportanceModel(weight.float(), -(mean @ weight).float()), r2.tolist()


def _centre_groups(y: Tensor, group: Tensor) -> Tensor:
    count = int(group.max()) + 1
    sums = torch.zeros(count, 2, dtype=y.dtype, device=y.device).index_add_(0, group, y)
    sizes = torch.bincount(group, minlength=count).clamp_min(1)[:, None]
    return y - (sums / sizes)[group]
