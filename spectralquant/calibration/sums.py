"""All sums of a calibration run together: what a checkpoint holds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spectralquant.calibration.capture.statistics import (
    LEAST_METRIC,
    EntropySum,
    FeatureMoments,
    GroupedMoments,
    SpanMoments,
)
from spectralquant.calibration.capture.step import CapturedStep
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.codec.cold.features import TokenFeatures
from spectralquant.errors import InputError, UnsupportedModelError
from spectralquant.geometry import SINKS, CacheGeometry
from spectralquant.hooks.decoder import attention_modules, layer_devices
from spectralquant.hooks.wrappers import model_device
from spectralquant.models.weights import module_weight


class CalibrationSums:
    """Moments of keys, values (and rotated keys for the hot tier), feature moments and attention entropy."""

    def __init__(
        self,
        model: nn.Module,
        geometry: CacheGeometry,
        span: int,
        features: TokenFeatures | None,
        settings: CalibrationSettings,
    ) -> None:
        self.geometry, self.settings, self.extractor = geometry, settings, features
        device, width = model_device(model), geometry.width
        devices = layer_devices(model)[: geometry.layers]
        self.moments = [_moments(geometry, span, settings, device, devices) for _ in range(2)]
        self.rotated = SpanMoments(width, geometry.head_dim, device, devices) if "hot" in settings.tiers else None
        self.entropy = EntropySum(torch.zeros(geometry.layers, geometry.heads, dtype=torch.float64, device=device))
        self.features = None
        if features is not None:
            self.features = FeatureMoments(features.width, 2 * width, device)
        shape = (geometry.layers * geometry.kv_heads, geometry.head_dim, geometry.head_dim)
        self.query_grams = None
        if settings.metric == "attention":
            self.query_grams = [torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(2)]
            self.output_gram = output_projection_gram(model, geometry)

    def add(self, step: CapturedStep, ids: Tensor) -> None:
        """Add one captured window without its sinks, one large tensor after the other."""
        flat = lambda x: x[SINKS:].flatten(1)  # noqa: E731
        block = self.settings.block
        read = max(SINKS, ((len(ids) - 1) // block - self.settings.near_blocks + 1) * block)
        grads = lambda x: x[SINKS:read].flatten(1)  # noqa: E731 (later tokens leave the recent window unread: zeros)
        fisher = self.settings.metric == "fisher"
        if self.rotated is not None:
            self.rotated.add(flat(step.keys_rotated), grads(step.rotated_grads) if fisher else None)
        features = None if self.extractor is None else self.extractor(ids, -1)[SINKS:].to(step.rotated.device)
        if features is not None:
            self.features.add_features(features)
        for kind, moment in enumerate(self.moments):
            rows = flat(step.values if kind else step.keys)
            if features is not None:
                self.features.add_cross(features, rows, kind)
            moment.add(rows, None)
            del rows
            if fisher:
                moment.add_metric(grads(step.value_grads if kind else step.key_grads))
        if self.query_grams is not None:
            for gram, queries in zip(self.query_grams, (step.queries, step.queries_rotated), strict=True):
                g = self.geometry
                rows = queries[SINKS:].reshape(-1, g.layers * g.kv_heads, g.group, g.head_dim).double()
                gram += torch.einsum("tngd,tnge->nde", rows, rows)
        self.entropy.add(step.entropy)

    def finish(self) -> None:
        """Set the attention metric, which is a block per head (method.md section 2), and what a group costs at least.

        Raises:
            InputError: nothing costs anything, so that there is nothing to weigh errors with.
        """
        if self.query_grams is not None:
            tokens = self.moments[0].count
            self.moments[0].head_metric = self.query_grams[0] / tokens
            self.moments[1].head_metric = self.output_gram
            if self.rotated is not None:
                self.rotated.head_metric = self.query_grams[1] / tokens
        if self.settings.metric == "energy":
            return
        overall = sum(moment.mean_metric for moment in self.moments) / len(self.moments)
        if not (math.isfinite(overall) and overall > 0):
            raise InputError(
                f"--metric {self.settings.metric}: the loss does not depend on keys and values (their mean squared gradient "
                f"is {overall:g}), so there is nothing to weigh errors with. Use --metric energy, --dtype float32, or "
                "another text."
            )
        for moment in (*self.moments, *((self.rotated,) if self.rotated is not None else ())):
            moment.least_metric = LEAST_METRIC * overall

    def state(self) -> dict[str, Tensor]:
        """Named tensors for a checkpoint."""
        out = {"entropy": self.entropy.total, "entropy.steps": torch.tensor(self.entropy.steps)}
        for name, part in self._parts().items():
            out |= part.state(name)
        for i, gram in enumerate(self.query_grams or ()):
            out[f"query_gram.{i}"] = gram
        return out

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.entropy.total.copy_(state["entropy"])
        self.entropy.steps = int(state["entropy.steps"])
        for name, part in self._parts().items():
            part.load_state(name, state)
        for i, gram in enumerate(self.query_grams or ()):
            gram.copy_(state[f"query_gram.{i}"])

    def clear(self) -> None:
        """Start again from nothing."""
        self.load_state({name: torch.zeros_like(tensor) for name, tensor in self.state().items()})

    def merge(self, other: CalibrationSums) -> None:
        """Add the sums of a run over other text with the same settings."""
        self.entropy.merge(other.entropy)
        for own, theirs in zip(self._parts().values(), other._parts().values(), strict=True):
            own.merge(theirs)
        for own, theirs in zip(self.query_grams or (), other.query_grams or (), strict=True):
            own += theirs

    def _parts(self) -> dict[str, SpanMoments | GroupedMoments | FeatureMoments]:
        parts = {"key": self.moments[0], "value": self.moments[1], "rotated": self.rotated, "features": self.features}
        return {name: part for name, part in parts.items() if part is not None}


def _moments(
    geometry: CacheGeometry,
    span: int,
    settings: CalibrationSettings,
    device: torch.device,
    devices: list[torch.device],
) -> SpanMoments | GroupedMoments:
    """Sums over spans of `span` coordinates; of layers that do not read equally far back, group by group."""
    if len(geometry.groups) == 1:
        return SpanMoments(geometry.width, span, device, devices)
    layers = [group.layers for group in geometry.groups]
    return GroupedMoments(geometry.layer_width, layers, settings.group_spans(geometry), device, devices)


def output_projection_gram(model: nn.Module, geometry: CacheGeometry) -> Tensor:
    """Gram matrices float64 `[L·Hk, D, D]` of the output projection W_O, summed over each head's query group.

    Raises:
        UnsupportedModelError: a layer has no `o_proj` or `dense` matrix of the expected shape.
    """
    grams = []
    for module in attention_modules(model)[: geometry.layers]:
        projection = getattr(module, "o_proj", None) or getattr(module, "dense", None)
        weight = None if getattr(projection, "weight", None) is None else module_weight(projection)
        if weight is None or weight.shape[1] != geometry.heads * geometry.head_dim:
            raise UnsupportedModelError(
                f"{type(module).__name__} has no output projection named o_proj or dense, which the attention metric "
                "needs. Use --metric fisher or energy."
            )
        rows = weight.double().view(-1, geometry.kv_heads, geometry.group, geometry.head_dim)
        grams.append(torch.einsum("okgd,okge->kde", rows, rows).to(model_device(model)))
    return torch.cat(grams)
