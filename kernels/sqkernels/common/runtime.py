"""Where Triton kernels can run, and which backend a call gets."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BACKENDS = ("auto", "triton", "reference")
OPERATORS = Path(__file__).parent.parent


def interpreting() -> bool:
    """Whether Triton was told to interpret kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def variants(operator: str) -> tuple[str, ...]:
    """Names of an operator's other kernels: the files of `sqkernels/OPERATOR/variants/`."""
    return tuple(sorted(info.name for info in pkgutil.iter_modules([str(OPERATORS / operator / "variants")])))


def variant(operator: str, name: str) -> Callable[..., Any]:
    """The function of a variant's file that is called like its operator; it takes what the reference takes."""
    return getattr(importlib.import_module(f"sqkernels.{operator}.variants.{name}"), operator)


def choose(backend: str, device: torch.device, operator: str | None = None) -> str:
    """ "triton", "reference" or a variant of `operator`. "auto" takes Triton on CUDA and the reference elsewhere.

    Raises:
        ValueError: no such backend. RuntimeError: a kernel was asked for and cannot run on this device.
    """
    known = BACKENDS if operator is None else BACKENDS + variants(operator)
    if backend not in known:
        raise ValueError(f"backend {backend!r} is not one of {', '.join(known)}")
    if backend == "auto":
        return "triton" if device.type == "cuda" else "reference"
    if backend != "reference" and device.type != "cuda" and not interpreting():
        raise RuntimeError(
            f"Triton kernels run on CUDA devices, not on {device}. Move the tensors to a GPU, or set TRITON_INTERPRET=1 "
            "before Triton is imported to interpret kernels (slowly) on the CPU, or use backend='reference'."
        )
    return backend


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; for the interpreter, which has none, 2."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def assembly(device: torch.device) -> bool:
    """Whether kernels may use PTX (the interpreter, and AMD devices, cannot)."""
    return device.type == "cuda" and torch.version.hip is None and not interpreting()


def overlap(device: torch.device, wanted: bool) -> dict[str, bool]:
    """Launch options that, where `wanted`, let a kernel start while the one before it ends (programmatic dependent launch, from Hopper on).

    Kernels then wait before they read what the one before wrote; see `device.wait_for_previous`.
    """
    if not wanted or not assembly(device) or torch.cuda.get_device_capability(device) < (9, 0):
        return {"OVERLAP": False}
    return {"OVERLAP": True, "launch_pdl": True}
