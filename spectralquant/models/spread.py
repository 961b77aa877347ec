"""`--device all`: a model whose layers lie on all GPUs of the machine, placed and connected by accelerate."""

from __future__ import annotations

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from torch import nn

from spectralquant.errors import InputError

ALL = "all"


def gpu_count() -> int:
    """GPUs that a model is spread over; 1 where there are none."""
    return max(1, torch.cuda.device_count())


def spread_places(model: nn.Module, dtype: torch.dtype, memory: dict[int, int] | None = None) -> dict[str, str]:
    """Device of each part of a model (of which only shapes are read), balanced over all GPUs.

    memory: bytes by GPU; by default what is free there.

    Raises:
        InputError: the GPUs together are too small for the weights.
    """
    whole = sorted(getattr(model, "_no_split_modules", None) or ())
    balanced = get_balanced_memory(model, memory, no_split_module_classes=whole, dtype=dtype)
    places = infer_auto_device_map(model, balanced, no_split_module_classes=whole, dtype=dtype)
    outside = sorted({str(place) for place in places.values() if not isinstance(place, int)})
    if outside:
        size = sum(p.numel() for p in model.parameters()) * dtype.itemsize
        raise InputError(
            f"--device {ALL}: weights of {size / 1e9:.0f} GB do not fit the GPUs of this machine. Use more or larger ones, or "
            "offload them (see 'Calibrate large models')."
        )
    return {name: f"cuda:{place}" for name, place in places.items()}


def made_in_place(model: nn.Module, places: dict[str, str], fixed: dict[str, nn.Module]) -> nn.Module:
    """Give a model on the meta device random weights, every module where `places` says, and connect the devices.

    fixed: modules by name that replace those whose buffers are not random.
    """
    for name, module in fixed.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module.to(_place(name, places)))
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        for key, parameter in own.items():
            setattr(module, key, nn.Parameter(torch.empty_like(parameter, device=_place(name, places))))
        if own:
            model._init_weights(module)
    return dispatch_model(model, places, main_device=next(iter(places.values())))


def _place(name: str, places: dict[str, str]) -> str:
    parts = name.split(".")
    return next(places[key] for n in range(len(parts), -1, -1) if (key := ".".join(parts[:n])) in places)
