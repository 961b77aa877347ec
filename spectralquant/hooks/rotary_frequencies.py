"""`RotaryFrequencies`: how every layer turns its keys, as a few numbers that a file can hold.

A serving engine runs models of its own, so its tier has no module of transformers to ask. Most rotary embeddings are
cos(position · frequency) · scale with constant frequencies (plain, linear, llama3, YaRN): the frequencies are found among
the buffers of the model's rotary modules, and are taken only where they make the model's own tables again.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spectralquant.errors import UnsupportedModelError
from spectralquant.geometry import CacheGeometry
from spectralquant.hooks.decoder import longest_context
from spectralquant.hooks.rotary_tables import Places, RotaryTables, Rotations
from spectralquant.rotary import Rotation
from spectralquant.rotary_layout import HALVES

PROBED, FAR = 4, 8191
TOLERANCE = 2e-3  # of float32 angles of thousands of radians


class RotaryFrequencies:
    """Rotations of L layers at any position.

    frequencies: float32 `[n, F]` in radians a position. scale: float32 `[n]`, of cos and sin. table: int64 `[L]`, which of
    the n a layer uses, −1 for a layer without RoPE. pairs, backwards: see `RotaryLayout`.
    """

    def __init__(
        self, frequencies: Tensor, scale: Tensor, table: Tensor, pairs: str = HALVES, backwards: bool = False
    ) -> None:
        self.frequencies, self.scale, self.table = frequencies, scale, table
        self.pairs, self.backwards = pairs, backwards

    def __call__(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Rotations:
        """The rotation of every layer at `positions: [T]`; layers with one table share it.

        dtype: of the engine's numbers, to which it (as transformers) rounds cos and sin before it turns keys by them.
        """
        place = positions.to(self.frequencies.device, torch.float32)
        made = [self._rotation(f, s, place, dtype) for f, s in zip(self.frequencies, self.scale, strict=True)]
        return tuple(None if i < 0 else made[i] for i in self.table.tolist())

    def _rotation(self, frequencies: Tensor, scale: Tensor, place: Tensor, dtype: torch.dtype) -> Rotation:
        angle = place[:, None] * frequencies
        cos, sin = ((f(angle) * scale).to(dtype).float() for f in (torch.cos, torch.sin))
        return Rotation(cos, -sin if self.backwards else sin, self.pairs)

    def to(self, device: torch.device | str) -> RotaryFrequencies:
        """The same on a device (`table` stays on the CPU, where it is read)."""
        moved = self.frequencies.to(device), self.scale.to(device)
        return RotaryFrequencies(*moved, self.table.cpu(), self.pairs, self.backwards)


@torch.no_grad()
def model_frequencies(model: nn.Module, geometry: CacheGeometry) -> RotaryFrequencies:
    """The frequencies of a model of transformers.

    Raises:
        UnsupportedModelError: they depend on the length of the text (longrope, dynamic NTK), or on more than positions.
    """
    tables = RotaryTables(model, geometry)
    if tables.dynamic:
        raise UnsupportedModelError(
            f"The rotary embedding of {type(model).__name__} changes with the length of the text (longrope, dynamic NTK), and "
            "serving engines choose otherwise than transformers what it is then. Such models have no profile for serving: "
            "use the lossless codec there."
        )
    far = min(FAR, (longest_context(model) or FAR + 1) - 1)
    places = torch.cat([torch.arange(PROBED), torch.tensor([far // 2, far])])
    rotations = tables(Places(places[None]))
    unique: dict[int, Rotation] = {id(r): r for r in rotations if r is not None}
    buffers = list(tables.buffers())
    found = {key: _fitting(r, places, geometry.layout.backwards, buffers) for key, r in unique.items()}
    missing = [i for i, r in enumerate(rotations) if r is not None and found[id(r)] is None]
    if missing:
        raise UnsupportedModelError(
            f"The rotary embedding of layers {missing} of {type(model).__name__} is no cos(position · frequency) with constant "
            "frequencies, so a serving engine's tier cannot make it again. Use the lossless codec there."
        )
    order = list(found)
    width = max((f.shape[0] for f, _ in found.values()), default=0)
    if any(f.shape[0] != width for f, _ in found.values()):
        raise UnsupportedModelError(
            f"Layers of {type(model).__name__} rotate different numbers of coordinates, which a profile for serving cannot "
            "hold. Use the lossless codec there."
        )
    empty = torch.zeros(0, width, dtype=torch.float32)
    return RotaryFrequencies(
        torch.stack([found[key][0] for key in order]).cpu() if order else empty,
        torch.tensor([found[key][1] for key in order], dtype=torch.float32),
        torch.tensor([-1 if r is None else order.index(id(r)) for r in rotations]),
        geometry.layout.pairs,
        geometry.layout.backwards,
    )


def _fitting(
    rotation: Rotation, places: Tensor, backwards: bool, buffers: Iterable[Tensor]
) -> tuple[Tensor, float] | None:
    """The frequencies `[F]` among some buffers, and the scale, that make a rotation at `places`."""
    scale = float(rotation.cos[0].mean())
    cos, sin = rotation.cos / scale, (-rotation.sin if backwards else rotation.sin) / scale
    coarse = 2.0**-7 if bool((rotation.cos == rotation.cos.bfloat16().float()).all()) else TOLERANCE
    for buffer in buffers:
        if buffer.shape != rotation.cos.shape[1:]:
            continue
        angle = places.to(buffer.device, torch.float32)[:, None] * buffer.float()
        worst = max(float((angle.cos() - cos).abs().max()), float((angle.sin() - sin).abs().max()))
        if worst <= coarse:
            return buffer.float(), scale
    return None
