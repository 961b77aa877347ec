"""Where Triton kernels can run, and which backend a call gets."""

from __future__ import annotations

import os

import torch

BACKENDS = ("auto", "triton", "reference")


def interpreting() -> bool:
    """Whether Triton was told to interpret kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose(backend: str, device: torch.device) -> str:
    """ "triton" or "reference". "auto" takes Triton on CUDA and the reference elsewhere.

    Raises:
        ValueError: no such backend. RuntimeError: "triton" was asked for and cannot run on this device.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if backend == "auto":
        return "triton" if device.type == "cuda" else "reference"
    if backend == "triton" and device.type != "cuda" and not interpreting():
        raise RuntimeError(
            f"Triton kernels run on CUDA devices, not on {device}. Move the tensors to a GPU, or set TRITON_INTERPRET=1 "
            "before Triton is imported to interpret kernels (slowly) on the CPU, or use backend='reference'."
        )
    return backend


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
