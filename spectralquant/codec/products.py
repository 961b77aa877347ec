"""The precision of large matrix products.

Recent x86 CPUs multiply bfloat16 several times faster than float32. Its rounding is taken where it disappears beside the
quantizer's: on the built-in model it adds half a hundredth of the quantizer's squared error. With steps so fine that it
would show, and where a CPU has no such units, products are float32. On CUDA GPUs they are float16 with float32 sums: its rounding
is 64 times smaller (squared) than bfloat16's, bases are kept in float16 anyway, and factors beyond its range are divided by a power of two.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from spectralquant.profile.tensors import ColdTier, StoredBasis

QUANTIZER_ERROR = 1 / 12
MOST_SHARE = 0.01
ROUNDING = 2.0**-18  # squared relative error of a product whose factors and result are rounded to bfloat16
ROWS = 256
HALF_LARGEST = 2.0**15


def product_dtype(tier: ColdTier, device: torch.device, step_scale: float = 1.0) -> torch.dtype:
    """Float16 on CUDA GPUs; bfloat16 on CPUs that have units for it, where its error is under a hundredth of the quantizer's;
    else float32.
    """
    if device.type == "cuda":
        return torch.float16
    if device.type != "cpu" or not _cpu_multiplies_bfloat16():
        return torch.float32
    error = max(rounding_error(tier.key), rounding_error(tier.value))
    return torch.bfloat16 if error <= MOST_SHARE * QUANTIZER_ERROR * step_scale**2 else torch.float32


def rounding_error(basis: StoredBasis) -> float:
    """Mean squared error of coefficients, in base steps, that comes of coordinates rounded to bfloat16 (expected)."""
    total, at = 0.0, 0
    span = basis.analysis.shape[1]
    weight = basis.back.square() * basis.variance
    predicted = basis.predictor.float().square().sum(0)  # features have unit variance
    for i, rank in enumerate(basis.ranks.tolist()):
        energy = predicted[i * span : (i + 1) * span].clone()
        for rows in range(at, at + rank, ROWS):
            some = slice(rows, min(rows + ROWS, at + rank))
            energy += weight[some] @ basis.synthesis[some].float().square()
        for rows in range(at, at + rank, ROWS):
            some = slice(rows, min(rows + ROWS, at + rank))
            total += float((basis.gain[some].square() * (basis.analysis[some].float().square() @ energy)).sum())
        at += rank
    return ROUNDING * total / max(1, at)


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """X @ matrix, computed in the matrix's dtype; in float16 with float32 results."""
    if matrix.dtype != torch.float16:
        return x.to(matrix.dtype) @ matrix
    if not x.numel():
        return half_product(x.half(), matrix)
    largest = x.abs().nan_to_num_(0.0, 0.0).amax().clamp_min(HALF_LARGEST)
    power = torch.exp2(torch.ceil(torch.log2(largest / HALF_LARGEST)))
    return half_product((x / power).half(), matrix).mul_(power)


def half_product(x: Tensor, matrix: Tensor, out: Tensor | None = None) -> Tensor:
    """Float32 x @ matrix of float16 matrices, into `out` where it is given."""
    if x.is_cuda:
        return (
            torch.mm(x, matrix, out_dtype=torch.float32, out=out)
            if out is not None
            else torch.mm(x, matrix, out_dtype=torch.float32)
        )
    return torch.mm(x.float(), matrix.float(), out=out) if out is not None else x.float() @ matrix.float()
