"""Elementwise, some elements a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqkernels.common.device import start_next, wait_for_previous
from sqkernels.common.runtime import overlap

ELEMENTS = 512


def launch(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """See `api.gated`."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    count = gate.numel()
    gated_kernel[(-(-count // ELEMENTS),)](
        gate, up, out, count, SILU=activation == "silu", ELEMENTS=ELEMENTS, **overlap(gate.device, True), num_warps=2
    )
    return out


@triton.jit(do_not_specialize=["count"])
def gated_kernel(GATE, UP, OUT, count, SILU: tl.constexpr, ELEMENTS: tl.constexpr, OVERLAP: tl.constexpr):
    """Grid (count / ELEMENTS). GATE, UP, OUT: `[count]`."""
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = at < count
    x = tl.load(GATE + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(UP + at, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        turned = x
    else:
        turned = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    out = x / (1.0 + tl.exp(-turned)) * up
    tl.store(OUT + at, out.to(OUT.dtype.element_ty), mask=inside)
