"""`ProfileView`: a profile's tables and head spectra as numpy arrays, loaded in a fraction of a second without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from spectralquant.errors import InputError, ProfileError
from spectralquant.profile.schema import ProfileSidecar
from spectralquant.profile.shapes import head_shapes
from spectralquant.profile.sidecar import check_tensor_file, load_sidecar, profile_stem

NAMES = ("variance", "entropy", "rank", "bits")


@dataclass(frozen=True)
class ProfileView:
    """Arrays of `profile_tensors.HeadSpectra` by name, and the sidecar. Index 0 is keys, 1 values."""

    stem: Path
    sidecar: ProfileSidecar
    variance: np.ndarray
    entropy: np.ndarray
    rank: np.ndarray
    bits: np.ndarray

    @classmethod
    def load(cls, path: str | Path) -> ProfileView:
        """Load a profile's summary; the whole tensor file is checked against its SHA-256.

        Raises:
            ProfileError: missing or damaged.
        """
        stem = profile_stem(path)
        sidecar = load_sidecar(stem)
        file = stem.with_name(stem.name + ".safetensors")
        check_tensor_file(file, sidecar)
        shapes = head_shapes(sidecar.model)
        try:
            with safe_open(file, framework="np") as handle:
                arrays = {name: handle.get_tensor(f"heads.{name}") for name in NAMES}
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise ProfileError(f"{file} cannot be read ({error}). Calibrate again.") from error
        for name, found in arrays.items():
            if found.shape != shapes[name] or found.dtype.kind != "f" or not np.isfinite(found).all():
                raise ProfileError(f"{file} is damaged: heads.{name} does not fit the model. Calibrate again.")
        return cls(stem, sidecar, **arrays)

    @property
    def head_entropy(self) -> np.ndarray:
        """Attention entropy per key/value head `[L, Hk]`: the mean over its query heads, nats."""
        layers, kv_heads = self.rank.shape[1:]
        mean: np.ndarray = self.entropy.reshape(layers, kv_heads, -1).mean(-1)
        return mean

    def captured(self, kind: int) -> np.ndarray:
        """Share of each head's weighted energy in its components above the water level, `[L, Hk]`."""
        variance = self.variance[kind]
        keep = np.arange(variance.shape[-1]) < self.rank[kind][..., None]
        share: np.ndarray = (variance * keep).sum(-1) / np.maximum(variance.sum(-1), 1e-30)
        return share

    def require_layer(self, layer: int) -> None:
        """Raise `InputError` unless the layer exists."""
        if not 0 <= layer < self.rank.shape[1]:
            raise InputError(f"--layer {layer} is outside 0 to {self.rank.shape[1] - 1}.")

    def require_head(self, head: int) -> None:
        """Raise `InputError` unless the head exists."""
        if not 0 <= head < self.rank.shape[2]:
            raise InputError(f"--head {head} is outside 0 to {self.rank.shape[2] - 1}.")
