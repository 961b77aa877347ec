"""The precision of large matrix products.

Recent x86 CPUs multiply bfloat16 several times faster than float32. Its rounding adds, on the built-in model, under a
hundredth of the quantizer's squared error; where a CPU has no such units, and on GPUs, products are float32.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def product_dtype(device: torch.device) -> torch.dtype:
    """Bfloat16 on CPUs that have units for it, else float32."""
    return torch.bfloat16 if device.type == "cpu" and _cpu_multiplies_bfloat16() else torch.float32


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """X @ matrix, computed in the matrix's dtype."""
    return x.to(matrix.dtype) @ matrix
