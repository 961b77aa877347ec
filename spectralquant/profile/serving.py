"""What a profile for serving engines holds beside its tiers: how every layer turns its keys."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.errors import ProfileError
from spectralquant.hooks.rotary_frequencies import RotaryFrequencies
from spectralquant.profile.checks import damaged, require_tensor
from spectralquant.profile.schema import ProfileSidecar, ServingInfo
from spectralquant.rotary_layout import HALVES, NEIGHBOURS

NAMES = ("frequencies", "scale", "table")


def serving_info(rotary: RotaryFrequencies) -> ServingInfo:
    """What the sidecar says."""
    return ServingInfo(pairs=rotary.pairs, backwards=rotary.backwards)


def rotary_tensors(rotary: RotaryFrequencies) -> dict[str, Tensor]:
    """What the tensor file holds."""
    return {f"rotary.{name}": getattr(rotary, name).detach().cpu().contiguous() for name in NAMES}


def rotary_of(sidecar: ProfileSidecar, tensors: dict[str, Tensor], where: str) -> RotaryFrequencies | None:
    """The rotary frequencies of a profile for serving, None of another.

    Raises:
        ProfileError: what the sidecar announces is missing, or does not fit.
    """
    info, model = sidecar.serving, sidecar.model
    if info is None:
        return None
    named = {name: tensors.get(f"rotary.{name}") for name in NAMES}
    missing = [f"rotary.{name}" for name, tensor in named.items() if tensor is None]
    if missing or info.pairs not in (HALVES, NEIGHBOURS):
        what = ", ".join(missing) or f"its layout {info.pairs!r}"
        raise ProfileError(f"{where} is damaged: {what} is missing or unknown. Calibrate again.")
    frequencies, scale, table = (tensor for tensor in named.values() if tensor is not None)
    count = len(scale)
    width = frequencies.shape[1] if frequencies.dim() == 2 else -1
    require_tensor(where, "rotary.frequencies", frequencies, (count, width), torch.float32)
    require_tensor(where, "rotary.scale", scale, (count,), torch.float32)
    require_tensor(where, "rotary.table", table, (model.layers,), torch.int64)
    if 2 * width > model.head_dim or not bool((scale > 0).all()) or not bool(frequencies.isfinite().all()):
        raise damaged(where, "rotary", "turns more than a head has, or by nothing")
    if [bool(i >= 0) for i in table] != list(model.rotary) or (len(table) and int(table.max()) >= count):
        raise damaged(where, "rotary.table", "does not fit the model's layers")
    return RotaryFrequencies(frequencies, scale, table, info.pairs, info.backwards)
