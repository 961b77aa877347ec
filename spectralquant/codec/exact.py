"""How sinks and the recent window are held: exactly, or rounded to 8 bits per number."""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_BYTES = 2


def int8_round_trip(x: Tensor) -> Tensor:
    """`x: [..., D]` after absmax int8 quantization per vector with an fp16 scale (as stored in a packet)."""
    codes, scale = int8_encode(x)
    return int8_decode(codes, scale).to(x.dtype)


def int8_encode(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 `[..., D]` and scales float16 `[..., 1]`."""
    scale = (x.float().abs().amax(-1, keepdim=True) / 127).clamp_min(6e-8).half()
    codes = (x.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return codes, scale


def int8_decode(codes: Tensor, scale: Tensor) -> Tensor:
    """Float32 values of int8 codes."""
    return codes.float() * scale.float()


def exact_bytes(tokens: int, vectors: int, head_dim: int, bits: int) -> int:
    """Bytes of `tokens` tokens with `vectors` key and value vectors each, at 16 bits or at 8 plus scales."""
    per_vector = 2 * head_dim if bits == 16 else head_dim + SCALE_BYTES
    return tokens * vectors * per_vector
