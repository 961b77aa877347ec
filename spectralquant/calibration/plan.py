"""The memory plan: what each stage of a calibration will hold on its device, before anything is loaded.

Every figure is predicted from the model's shape and the settings alone; `profiles/results/calibrate-scale.json` holds them
beside measured peaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from spectralquant.calibration.basis.two_level import MAX_INNER
from spectralquant.calibration.capture.loss import ROWS
from spectralquant.calibration.capture.samples import sample_bytes, sample_indices
from spectralquant.calibration.capture.symmetric import MAX_TILE
from spectralquant.calibration.cold.budget import default_budget
from spectralquant.calibration.fixed.fit import MAX_TOKENS
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.codec.cold.features import MAX_DIMS
from spectralquant.errors import InputError
from spectralquant.geometry import SINKS, CacheGeometry
from spectralquant.hooks.decoder import layer_devices, text_config
from spectralquant.models.config import parameter_count
from spectralquant.models.load import LoadedModel
from spectralquant.models.shapes import ModelShape
from spectralquant.sizes import parse_size

USABLE = 0.93  # of a card: the rest goes to the driver, the libraries and what fragments
F32, F64 = 4, 8


@dataclass(frozen=True)
class PlannedModel:
    """What a plan needs to know of a model: its shape and cache, and the bytes of one number (2 or 4).

    whole: bytes of all weights; weights: of those on the fullest device. layers: most layers on one device.
    """

    shape: ModelShape
    geometry: CacheGeometry
    weights: int
    element: int
    whole: int
    layers: int

    @classmethod
    def of_config(cls, name: str, config: Any, element: int, devices: int = 1) -> PlannedModel:
        """From a transformers configuration: the weights are counted, not made, and spread evenly over `devices`."""
        shape = ModelShape.of_config(name, config)
        layers = len(shape.windows) or shape.layers
        geometry = CacheGeometry(layers, shape.heads, shape.kv_heads, shape.head_dim, (True,) * layers, shape.windows)
        whole, most = element * parameter_count(config), -(-layers // devices)
        outer = 2 * shape.vocab * shape.hidden * element  # embeddings lie on the first device, the head on the last
        weights = whole if devices == 1 else most * (whole - outer) // layers + outer // 2
        return cls(shape, geometry, weights, element, whole, most)

    @classmethod
    def of_loaded(cls, loaded: LoadedModel) -> PlannedModel:
        """Of a model that is there: what is offloaded to the host or a disk does not count on the device."""
        used = Counter(layer_devices(loaded.model)[: loaded.geometry.layers])
        here: Counter[torch.device] = Counter()
        for p in loaded.model.parameters():
            here[p.device] += p.numel() * p.element_size()
        whole, weights = sum(here.values()), max(here[device] for device in used)
        g, config = loaded.geometry, text_config(loaded.model)
        vocabulary, hidden = loaded.model.get_input_embeddings().weight.shape
        inner = getattr(config, "intermediate_size", None)
        inner = inner if isinstance(inner, int) else 4 * hidden  # a list, or another name, in some architectures
        shape = ModelShape(loaded.name, g.layers, g.heads, g.kv_heads, g.head_dim, hidden, inner, vocabulary, g.windows)
        return cls(shape, g, weights, loaded.model.dtype.itemsize, whole, max(used.values()))


@dataclass(frozen=True)
class Stage:
    """One stage's parts in bytes on the device, by name; they are held at the same time."""

    name: str
    parts: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted bytes of a calibration with `settings`. host: sample windows in (pinned) host memory. profile: at most.

    inner: components that the first of two levels keeps at most, of keys or of values; None where bases are dense.
    """

    settings: CalibrationSettings
    span: int
    stages: tuple[Stage, ...]
    host: int
    profile: int
    samples: int
    inner: int | None = None

    @property
    def peak(self) -> int:
        """Bytes on the device in the largest stage."""
        return max(stage.peak for stage in self.stages)

    def fits(self, memory: int | None) -> bool:
        """Whether a device of `memory` bytes will do."""
        return memory is None or self.peak <= USABLE * memory


class Planner:
    """Plans for one model on one kind of device."""

    def __init__(self, model: PlannedModel, *, cuda: bool) -> None:
        self.model, self.geometry, self.cuda = model, model.geometry, cuda

    def plan(self, settings: CalibrationSettings) -> MemoryPlan:
        """What these settings take."""
        span = max(settings.group_spans(self.geometry))
        samples = self._samples(settings)
        size = sample_bytes(self.geometry, settings.window, self.model.element, backward=settings.metric == "fisher")
        stages = [self._capture(settings, span)]
        if "cold" in settings.tiers:
            stages += self._cold(settings, span, samples)
        for tier in ("warm", "hot"):
            if tier in settings.tiers:
                stages.append(self._fixed(settings, span, samples, tier))
        inner = self._rank(settings, span) if "cold" in settings.tiers and self._two_levels(settings, span) else None
        return MemoryPlan(settings, span, tuple(stages), samples * size, self._profile(settings, span), samples, inner)

    def fitted(self, settings: CalibrationSettings, memory: int) -> MemoryPlan:
        """The first plan that fits `memory` bytes: layers run again, then fewer sample windows, then shorter spans.

        Raises:
            InputError: none does; the message says what would.
        """
        plan = None
        for candidate in self._candidates(settings):
            plan = self.plan(candidate)
            if plan.fits(memory):
                return plan
        largest = max(plan.stages, key=lambda stage: stage.peak)
        weights = self.model.weights
        advice = (
            "Spread the layers over several cards (--device all), offload the weights (load the model with accelerate's device_map, and pass it to spectralquant.calibrate), "
            "or use a larger card."
            if weights > 0.7 * USABLE * memory
            else "Use a shorter --window, --tier cold, --predict none, or --metric attention (no backward pass)."
        )
        raise InputError(
            f"This calibration needs {plan.peak / 1e9:.1f} GB (stage {largest.name!r}), and the device gives "
            f"{USABLE * memory / 1e9:.1f} GB; the weights take {weights / 1e9:.1f}. {advice}"
        )

    def _candidates(self, settings: CalibrationSettings) -> Iterator[CalibrationSettings]:
        spans = [settings.span]
        if settings.span == "auto":
            widest = max(settings.group_spans(self.geometry)) // self.geometry.layer_width
            layers = self.geometry.layers
            shortest = 2 if self.geometry.layers % 2 == 0 else 1  # one layer alone has no product form, and is larger
            spans += [str(n) for n in range(widest - 1, shortest - 1, -1) if layers % n == 0]
        yield settings
        again = replace(settings, recompute=settings.metric == "fisher")
        windows = [n for n in (settings.sample_windows, 8, 4) if n <= settings.sample_windows]
        for span in spans:
            for count in windows:
                yield replace(again, span=span, sample_windows=count)

    def _samples(self, settings: CalibrationSettings) -> int:
        size = sample_bytes(self.geometry, settings.window, self.model.element, backward=settings.metric == "fisher")
        return len(sample_indices(settings.steps, size, settings.sample_bytes, settings.sample_windows))

    def _features(self, settings: CalibrationSettings) -> int:
        if settings.predict != "tokens" or "cold" not in settings.tiers:
            return 0
        return 2 * min(MAX_DIMS, self.model.shape.hidden)

    def _sums(self, settings: CalibrationSettings, span: int) -> int:
        g, sums = self.geometry, 2 if settings.metric == "fisher" else 1
        features = self._features(settings)
        spans = -(-self.model.layers * (g.width // span) // g.layers)
        total = 2 * sums * spans * _tiles(span) * F32
        total += (2 * g.width * features + _tiles(features)) * F32
        if "hot" in settings.tiers:
            total += sums * g.width * g.head_dim * F32
        if settings.metric == "attention":
            total += 3 * g.width * g.head_dim * F64
        return total

    def _held(self, settings: CalibrationSettings, span: int) -> dict[str, int]:
        return {"weights": self.model.weights, "statistics": self._sums(settings, span)}

    def _capture(self, settings: CalibrationSettings, span: int) -> Stage:
        g, s, e, t = self.geometry, self.model.shape, self.model.element, settings.window
        queries = g.heads * g.head_dim
        backward = settings.metric == "fisher"
        layer = t * (8 * s.hidden + 2 * queries * e + 3 * s.intermediate * e)
        if backward:
            blocks = -(-t // settings.block)
            read = settings.block * blocks * (blocks + 1) // 2
            layer += 2 * read * e * (queries if g.group > 1 and self.cuda else g.layer_width)
        records = (4 if backward else 2) * g.width * t * e
        if settings.metric == "attention":
            records += g.layers * t * queries * e
        if not backward:
            activations = layer
        elif settings.recompute:
            activations = self.model.layers * t * s.hidden * e + int(1.5 * layer)
        else:
            activations = self.model.layers * layer
        logits = (2 if backward else 1) * s.vocab * t * e + 3 * ROWS * s.vocab * F32
        observed = 3 * g.heads * (t // 8) * t * F32
        here = records * self.model.layers // g.layers
        running = {"activations": activations, "logits": logits, "keys, values, gradients": here + observed}
        adding = {"keys, values, gradients": records + here + 2 * g.width * t * F32}
        return Stage("capture", self._held(settings, span) | max(running, adding, key=lambda p: sum(p.values())))

    def _rank(self, settings: CalibrationSettings, span: int) -> int:
        """Components that are solved for, of keys or of values."""
        groups = self.geometry.width // span
        most = min(span, MAX_INNER * span // self.geometry.width)
        return groups * most if self._two_levels(settings, span) else self.geometry.width

    def _two_levels(self, settings: CalibrationSettings, span: int) -> bool:
        return settings.two_levels(self.geometry) and span > self.geometry.layer_width

    def _cold(self, settings: CalibrationSettings, span: int, samples: int) -> list[Stage]:
        g, rank, features = self.geometry, self._rank(settings, span), self._features(settings)
        tokens = samples * (settings.window - SINKS)
        far = max(0, settings.window - 2 * settings.block) * samples if settings.metric == "fisher" else 0
        held = self._held(settings, span)
        problem = min(span, rank * span // g.width)
        fitter = {
            "predictor": 2 * features * g.width * F32,
            "bases": 2 * 2 * rank * span * F32,
            "coefficients": 2 * (tokens + far) * rank * F32,
        }
        solver = 7 * problem**2 * (F64 if self.cuda or problem <= 2048 else F32) + 2 * features * g.width * F64
        fitting = (2 * tokens + far) * rank * F32 + tokens * rank * F32
        codec = 2 * 2 * rank * span * F32 + 2 * features * g.width * F32
        return [
            Stage("bases", held | fitter | {"eigenproblem": solver}),
            Stage("cold tier", held | fitter | {"fitting, or measuring": max(fitting, codec)}),
        ]

    def _fixed(self, settings: CalibrationSettings, span: int, samples: int, tier: str) -> Stage:
        tokens = min(MAX_TOKENS, samples * (settings.window - SINKS))
        width = self.geometry.head_dim if tier == "hot" else self.geometry.layer_width
        own = {
            "samples": 2 * 5 * tokens * self.geometry.width * F32,
            "bases": 2 * 2 * self.geometry.width * width * F32,
        }
        return Stage(f"{tier} tier", self._held(settings, span) | own)

    def _profile(self, settings: CalibrationSettings, span: int) -> int:
        g, features = self.geometry, self._features(settings)
        total = 2 * g.layers * g.kv_heads * (4 * g.head_dim**2 + 8 * g.head_dim)
        if "cold" in settings.tiers:
            rank = self._rank(settings, span)
            if self._two_levels(settings, span):
                own = min(span, rank * span // g.width)
                total += 2 * (2 * 2 * rank * g.layer_width + 2 * rank * own + features * g.width)
                total = min(total, default_budget(self.model.whole, g.width))
            else:
                total += 2 * 2 * (2 * rank * span + features * g.width)
        for tier, width in (("warm", g.layer_width), ("hot", g.head_dim)):
            if tier in settings.tiers:
                total += 2 * 2 * 2 * g.width * width
        return total


def _tiles(width: int) -> int:
    """Numbers in the lower tiles of a symmetric matrix (see `SymmetricSum`)."""
    count = -(-width // MAX_TILE)
    size = -(-width // count) if width else 0
    return count * (count + 1) // 2 * size**2


def memory_of(device: torch.device, limit: str | None) -> int | None:
    """Bytes to plan for: what a GPU has, or `limit` (`22GB`) where that is less; None where nothing limits a CPU.

    Raises:
        InputError: `limit` is not a size.
    """
    wanted = None if limit is None else parse_size(limit, "--memory")
    if device.type != "cuda" or not torch.cuda.is_available():
        return wanted
    total = torch.cuda.get_device_properties(device).total_memory
    return total if wanted is None else min(total, wanted)


def keep_within(model: nn.Module, memory: int) -> None:
    """Let PyTorch take no more of the GPUs that a model's layers lie on than a plan for `memory` bytes each may use."""
    for device in {device for device in layer_devices(model) if device.type == "cuda"}:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, USABLE * memory / total), device)


def plan_for(model: PlannedModel, settings: CalibrationSettings, memory: int | None) -> MemoryPlan:
    """The plan of these settings, changed to fit `memory` bytes of a GPU where that is given (see `Planner.fitted`)."""
    model = replace(model, geometry=settings.coded_geometry(model.geometry))
    planner = Planner(model, cuda=memory is not None)
    return planner.plan(settings) if memory is None else planner.fitted(settings, memory)
