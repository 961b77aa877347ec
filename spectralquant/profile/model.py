"""`CalibrationProfile`: one safetensors file and one JSON sidecar, everything a codec needs at run time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from spectralquant.errors import InputError, ProfileError
from spectralquant.files import atomic_path, write_text
from spectralquant.geometry import CacheGeometry, LayerGroup
from spectralquant.hooks.rotary_frequencies import RotaryFrequencies
from spectralquant.hooks.wrappers import usable_model
from spectralquant.models.identity import difference, weights_sha256
from spectralquant.profile.checks import check_tensors
from spectralquant.profile.schema import ProfileSidecar
from spectralquant.profile.serving import rotary_of, rotary_tensors
from spectralquant.profile.sidecar import check_tensor_file, load_sidecar, profile_stem, sealed_sidecar
from spectralquant.profile.tensors import (
    TIERS,
    ColdTier,
    FixedTier,
    HeadSpectra,
    SplitTier,
    flatten,
    tier_part,
    unflatten,
)


@dataclass(frozen=True)
class SpectralHead:
    """One head of a profile.

    kind: "key" or "value". basis `[D, D]` analysis rows (unit norm, leading first), spectrum `[D]` variances in units
    of the metric, rank: components above the water level, bits: predicted bits per scalar at that level, entropy:
    attention entropy in nats of the query heads that read this head.
    """

    layer: int
    head: int
    kind: str
    basis: Tensor
    spectrum: Tensor
    rank: int
    bits: float
    entropy: float


@dataclass
class CalibrationProfile:
    """Bases, codebooks and tables of one model on one domain, with where they came from.

    rotary: how keys are turned, in a profile for serving engines, whose tiers have no model to ask; else None.
    codecs: what caches have built from it (by tier, device and step), so that many caches share one; never saved.
    """

    sidecar: ProfileSidecar
    heads: HeadSpectra
    tiers: dict[str, ColdTier | FixedTier | SplitTier]
    path: Path | None = None
    rotary: RotaryFrequencies | None = None
    codecs: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "codecs": {}}

    @property
    def geometry(self) -> CacheGeometry:
        m = self.sidecar.model
        return CacheGeometry(m.layers, m.heads, m.kv_heads, m.head_dim, tuple(m.rotary))

    @property
    def id(self) -> bytes:
        """16 bytes that packets name: the first half of the SHA-256 of the tensor file."""
        return bytes.fromhex(self.sidecar.tensors_sha256)[:16]

    def tier(self, name: str) -> ColdTier | FixedTier | SplitTier:
        """A tier by name.

        Raises:
            ProfileError: the profile was calibrated without it.
        """
        if name not in self.tiers:
            raise ProfileError(
                f"This profile has no {name} tier, only {', '.join(self.tiers)}. Calibrate with --tier {name} or all."
            )
        return self.tiers[name]

    def tier_of(self, name: str, layers: tuple[int, ...]) -> ColdTier | FixedTier | None:
        """A tier's tensors for some layers of the model (see `tier_part`).

        Raises:
            ProfileError: see `tier`.
        """
        return tier_part(self.tier(name), layers, self.geometry.layers, self.geometry.layer_width)

    def parts(self, name: str, groups: Sequence[LayerGroup]) -> dict[tuple[int, ...], ColdTier | FixedTier]:
        """A tier's tensors for each group of layers.

        Raises:
            ProfileError: the profile lacks the tier, or its bases mix layers of several groups.
        """
        found = {group.layers: self.tier_of(name, group.layers) for group in groups}
        for missing in (group for group in groups if found[group.layers] is None):
            reads = "all tokens" if missing.window is None else f"{missing.window:,} tokens at most"
            raise ProfileError(
                f"This profile's {name} tier does not code layers {_ranges(missing.layers)}, which read {reads}, apart from "
                "the others, so tokens that some layers never read again could not be let go. Calibrate again: profiles of "
                "today keep such layers apart."
            )
        return {layers: tier for layers, tier in found.items() if tier is not None}

    def head(self, layer: int, head: int, kind: str = "key") -> SpectralHead:
        """One head's basis, spectrum, rank, bits and entropy.

        Raises:
            InputError: no such layer, head or kind.
        """
        g = self.geometry
        for name, value, count in (("layer", layer, g.layers), ("head", head, g.kv_heads)):
            if not 0 <= value < count:
                raise InputError(f"--{name} {value} is outside 0 to {count - 1}.")
        if kind not in ("key", "value"):
            raise InputError(f"kind must be key or value, not {kind!r}.")
        k = ("key", "value").index(kind)
        group = self.heads.entropy[layer, head * g.group : (head + 1) * g.group]
        return SpectralHead(
            layer,
            head,
            kind,
            self.heads.basis[k, layer, head].float(),
            self.heads.variance[k, layer, head],
            int(self.heads.rank[k, layer, head]),
            float(self.heads.bits[k, layer, head]),
            float(group.mean()),
        )

    def require_model(self, model: nn.Module, name: str = "this model") -> None:
        """Refuse a model that the profile was not calibrated on, and any model where it is for serving engines.

        Raises:
            ProfileError: naming both models, or what the profile is for.
        """
        if self.sidecar.serving is not None:
            raise ProfileError(
                "This profile was calibrated for the tier of a serving engine (sq calibrate --for serving), which knows neither "
                "token ids nor attention; caches of transformers do, and get more from it. Calibrate one for them, without --for."
            )
        reason = difference(self.sidecar.model, model)
        if reason is not None:
            mine, inner = self.sidecar.model, usable_model(model, spread=True)
            raise ProfileError(
                f"The profile was calibrated on {mine.name} ({mine.architecture}, {mine.layers} layers, "
                f"{mine.weights_dtype or 'dtype unknown'}, weights {mine.weights_sha256_bfloat16[:12]}), not on {name} "
                f"({type(inner).__name__}, {str(inner.dtype).removeprefix('torch.')}, weights "
                f"{weights_sha256(inner)[:12]}). {reason}"
            )

    def require_serving(self) -> RotaryFrequencies:
        """How keys are turned, of a profile for serving engines.

        Raises:
            ProfileError: the profile is for caches of transformers.
        """
        if self.rotary is None:
            raise ProfileError(
                "This profile was calibrated for caches of transformers, which know token ids and attention; a serving engine's "
                "tier knows neither. Calibrate one for it: sq calibrate --for serving."
            )
        return self.rotary

    def seal(self) -> bytes:
        """Serialize the tensors and note their hash and size in the sidecar, which gives the profile its id."""
        data = profile_bytes(self.heads, self.tiers, self.rotary)
        self.sidecar.tensors_sha256 = hashlib.sha256(data).hexdigest()
        self.sidecar.tensor_bytes = len(data)
        return data

    def save(self, path: str | Path) -> Path:
        """Write `path`.safetensors and `path`.json to temporary names, then rename both; returns the JSON path."""
        stem = profile_stem(path)
        sidecar = stem.with_name(stem.name + ".json")
        with atomic_path(stem.with_name(stem.name + ".safetensors")) as tensors:
            tensors.write_bytes(self.seal())
            write_text(sidecar, sealed_sidecar(self.sidecar))
        self.path = stem
        return sidecar

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> CalibrationProfile:
        """Load and check a profile. `verify=False` skips hashing the tensor file (it may be over 100 MB).

        Raises:
            ProfileError: missing, damaged, of another schema, or with shapes that do not fit.
        """
        stem = profile_stem(path)
        sidecar = load_sidecar(stem)
        file = stem.with_name(stem.name + ".safetensors")
        check_tensor_file(file, sidecar, verify=verify)
        try:
            with safe_open(file, framework="pt") as handle:
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise ProfileError(f"{file} cannot be read ({error}). Calibrate again.") from error
        tiers = {name: unflatten(name, TIERS[name], tensors) for name in sidecar.tiers}
        heads = unflatten("heads", HeadSpectra, tensors)
        check_tensors(sidecar.model, heads, tiers, str(file))
        return cls(sidecar, heads, tiers, stem, rotary_of(sidecar, tensors, str(file)))


def _ranges(layers: Sequence[int]) -> str:
    """Numbers as people write them: 0 to 4, 6."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def profile_bytes(heads: HeadSpectra, tiers: dict[str, Any], rotary: RotaryFrequencies | None = None) -> bytes:
    """The tensor file's content; equal tensors give equal bytes."""
    tensors = flatten("heads", heads)
    for name in sorted(tiers):
        tensors |= flatten(name, tiers[name])
    if rotary is not None:
        tensors |= rotary_tensors(rotary)
    return safetensors_bytes(dict(sorted(tensors.items())), metadata={"format": "spectralquant.profile.1"})
