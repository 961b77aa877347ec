"""The GPUs among which engines are shared out."""

from __future__ import annotations

import os

from spectralquant.errors import InputError
from spectralquant.integrations.serve_check.process import usable_gpus

VISIBLE = "CUDA_VISIBLE_DEVICES"
NONE = "-1"


def cards() -> list[str]:
    """GPUs that this process can use, as CUDA_VISIBLE_DEVICES names them.

    Raises:
        InputError: the variable names others. An engine that is then started with one of its names has a GPU where this process, which
            chooses the engine's arguments, has none.
    """
    usable = usable_gpus()
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return [str(i) for i in range(usable)]
    names = [name.strip() for name in visible.split(",") if visible.strip() not in ("", NONE)]
    if len(names) != usable:
        raise InputError(
            f"{VISIBLE}={visible} names {len(names)} GPUs, but PyTorch can use {usable}. Name each GPU once, as nvidia-smi numbers them; "
            "leave the variable unset for all of them, or set it to nothing for the CPU."
        )
    return names
