"""Importance classes: spend fewer bits on tokens that nothing will read (method.md section 3).

A ridge regression, fitted at calibration, predicts the log of a token's mean squared loss gradient from the attention
it has received and from the energy of its coefficients. Its class j ∈ −4…4 scales the step by 2^(j/2); classes travel
in the packet, so a decoder needs no attention. Where no attention is at hand, blocks are coded as a whole at the base step,
with tables fitted to that; in a profile for serving engines, which never have any, the regression is from the leading
coefficients of the token's own key and value instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CLASSES = 9
NEUTRAL = CLASSES // 2
UNSEEN = CLASSES  # the class of tokens whose attention nobody saw: the base step, with tables of its own
FLOOR = 1e-4


@dataclass(frozen=True)
class ImportanceModel:
    """Linear prediction of centred log w. weight: float32 `[features, 2]` (keys, values), bias: `[2]`."""

    weight: Tensor
    bias: Tensor

    def classes(self, features: Tensor) -> Tensor:
        """Class index 0…8 per token, int64 `[T, 2]` (keys, values); 4 is the base step."""
        log_weight = features @ self.weight.to(features) + self.bias.to(features)
        steps = (-log_weight / math.log(2)).round()
        return (torch.nan_to_num(steps).clamp(-NEUTRAL, NEUTRAL) + NEUTRAL).long()


def importance_features(received: Tensor, key_coefficients: Tensor, value_coefficients: Tensor) -> Tensor:
    """Features `[T, L·H + 2]`: log attention received per layer and head, log energy of key and value coefficients.

    received: `[T, L, H]`; coefficients: `[T, R]` in units of the base step.
    """
    energies = [torch.log(c.square().mean(1, keepdim=True) + 1e-9) for c in (key_coefficients, value_coefficients)]
    return torch.cat([torch.log(received.flatten(1) + FLOOR), *energies], dim=1)


def own_features(key_leading: Tensor, value_leading: Tensor, key_energy: Tensor, value_energy: Tensor) -> Tensor:
    """Features `[T, 4·n + 2]` of tokens whose attention nobody sees: what their keys and values tell by themselves.

    leading: n coefficients `[T, n]` of largest variance, in units of the base step; energy: mean squares of all `[T]`.
    """
    energies = [torch.log(e + 1e-9)[:, None] for e in (key_energy, value_energy)]
    return torch.cat([*energies, key_leading, value_leading, key_leading.abs(), value_leading.abs()], dim=1)


def class_step(classes: Tensor) -> Tensor:
    """Step of each class relative to the base step: 2^((index − 4)/2), float32; 1 for `UNSEEN`."""
    return torch.exp2((torch.where(classes == UNSEEN, NEUTRAL, classes).float() - NEUTRAL) / 2)
