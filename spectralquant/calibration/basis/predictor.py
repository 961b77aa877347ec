"""Fitting the linear predictor of keys and values from token features, and what variance it leaves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.calibration.capture.statistics import FeatureMoments, SpanMoments

RIDGE = 1e-3


@dataclass(frozen=True)
class Predictor:
    """x̂ = offset + f·weight for one kind. weight float32 `[F, P]`, offset float64 `[P]`."""

    weight: Tensor
    offset: Tensor


def solve_predictor(features: FeatureMoments, moments: SpanMoments, kind: int) -> tuple[Predictor, Tensor, Tensor]:
    """Ridge regression from accumulated sums; kind 0 keys, 1 values.

    Returns:
        the predictor, the centred feature covariance `[F, F]` and cross covariance `[F, P]`, float64.
    """
    width = moments.width
    mean = features.sum / features.count
    gram = features.gram.dense() / features.count - torch.outer(mean, mean)
    cross = features.cross[:, kind * width : (kind + 1) * width].double() / features.count
    cross = cross - torch.outer(mean, moments.mean)
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + ridge, cross)
    return Predictor(weight.float(), moments.mean - mean @ weight), gram, cross


def residual_covariance(covariance: Tensor, weight: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """Covariance of x − f·weight for one span of coordinates, float64 `[p, p]`."""
    weight = weight.double()
    half = weight.T @ (cross - gram @ weight / 2)
    return covariance - half - half.T
