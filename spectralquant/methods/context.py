"""What methods may need to be built: the model, a profile, and text to fit themselves on."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.errors import InputError
from spectralquant.methods.coding.kvtc import Pca
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.tensors import layer_columns

PCA_SAMPLES = 2048


@dataclass
class MethodContext:
    """`windows`: calibration tokens int64 `[n, T]`, for rivals that calibrate (none are scored)."""

    loaded: LoadedModel
    profile: CalibrationProfile | None = None
    windows: Tensor | None = None
    seed: int = 0

    def need_profile(self, method: str) -> CalibrationProfile:
        """The profile.

        Raises:
            InputError: none was given.
        """
        if self.profile is None:
            raise InputError(f"{method} needs a calibrated profile: --profile PROFILE (make one with `sq calibrate`).")
        return self.profile

    def pca(self, layers: tuple[int, ...]) -> tuple[Pca, Pca]:
        """Plain PCA of keys before RoPE and of values over some layers, from the calibration windows.

        Raises:
            InputError: no calibration text.
        """
        columns = layer_columns(layers, self.loaded.geometry.layer_width).to(self.loaded.device)
        out = []
        for mean, covariance, sample in self._moments:
            some = covariance if len(columns) == len(mean) else covariance[columns][:, columns]
            basis = torch.linalg.eigh(some)[1].flip(1).T.contiguous()
            out.append(Pca(mean[columns], basis, (sample[:, columns] - mean[columns]) @ basis.T))
        return out[0], out[1]

    @functools.cached_property
    def _moments(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Mean, covariance and sample rows of keys before RoPE and of values over all layers."""
        from spectralquant.hooks.kv_capture import capture_keys_values

        if self.windows is None or not len(self.windows):
            raise InputError("kvtc fits a PCA on calibration text; give text with windows before the scored ones.")
        device = self.loaded.device
        width = self.loaded.geometry.width
        sums = [[torch.zeros(width, dtype=torch.float64, device=device), None] for _ in range(2)]
        rows: list[list[Tensor]] = [[], []]
        count = 0
        for ids in self.windows:
            pair = capture_keys_values(self.loaded.model, self.loaded.geometry, ids)
            count += len(pair[0])
            for kind, x in enumerate(pair):
                sums[kind][0] += x.sum(0, dtype=torch.float64)
                gram = x.T @ x
                sums[kind][1] = gram if sums[kind][1] is None else sums[kind][1].add_(gram)
                rows[kind].append(x[:: max(1, len(x) * len(self.windows) // PCA_SAMPLES)].clone())
        out = []
        for (total, gram), sample in zip(sums, rows, strict=True):
            mean = (total / count).float()
            out.append((mean, gram / count - torch.outer(mean, mean), torch.cat(sample)[:PCA_SAMPLES]))
        return out
