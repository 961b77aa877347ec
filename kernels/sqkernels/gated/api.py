"""Checked entry point of the gated product."""

from __future__ import annotations

from torch import Tensor

from sqkernels.common import runtime
from sqkernels.gated import reference

ACTIVATIONS = ("silu", "gelu_tanh")


def gated(gate: Tensor, up: Tensor, activation: str, *, backend: str = "auto") -> Tensor:
    """activation(gate) · up, elementwise (Shazeer 2020, arXiv 2002.05202), computed in float32.

    Args:
        gate, up: of one shape, dtype and device. activation: silu, or gelu_tanh (GELU by its tanh approximation).
        backend: auto (Triton on CUDA, else the reference), triton or reference.

    Raises:
        ValueError: arguments disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype or gate.device != up.device:
        raise ValueError(f"gate {tuple(gate.shape)} {gate.dtype} and up {tuple(up.shape)} {up.dtype} must be alike")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if runtime.choose(backend, gate.device) == "reference":
        return reference.gated(gate, up, activation)
    from sqkernels.gated.triton import launch

    return launch(gate, up, activation)
