"""`kvtc`: PCA over all layers, dynamic-programming bits, a general-purpose compressor (arXiv 2511.01815).

As published: keys without RoPE and values of all layers and heads are decorrelated by plain PCA fitted on calibration
text; components are cut into groups whose sizes and bit widths a dynamic programme chooses for a budget, every group of
a token carrying its scale and offset in 16 bits each; the packed codes go through DEFLATE.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.errors import InputError
from spectralquant.methods.entry import MethodEntry
from spectralquant.methods.grouped import grouped
from sqkernels.bitpack import pack_codes, unpack_codes

UNIT = 16
GROUPS = (16, 64, 256, 1024)
WIDTHS = (0, 1, 2, 4, 8)
SIDE_BITS = 32
LEVEL = 6


@dataclass(frozen=True)
class Pca:
    """Mean `[P]`, components as rows `[P, P]` (leading first) of keys or values, and sample coefficients `[N, P]`."""

    mean: Tensor
    rows: Tensor
    samples: Tensor


@dataclass(frozen=True)
class _Group:
    start: int
    stop: int
    bits: int


def quantize_rows(y: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 `[T, n]`, scale and offset float16 `[T, 1]` of one group, asymmetric over its components."""
    low, high = y.amin(1, keepdim=True), y.amax(1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp(1e-6, 65504).half()
    offset = low.clamp(-65504, 65504).half()
    codes = ((y - offset.float()) / scale.float()).round().clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), scale, offset


def dequantize_rows(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Inverse of `quantize_rows`."""
    return codes.float() * scale.float() + offset.float()


def allocate(samples: Tensor, bits_per_token: float) -> list[_Group]:
    """Groups of least squared error on `samples: [N, P]` for a budget, by dynamic programming at a multiplier λ that is
    bisected.
    """
    width = samples.shape[1] // UNIT * UNIT
    units = width // UNIT
    choices: list[tuple[int, int, np.ndarray, np.ndarray]] = []
    for size in GROUPS:
        span = size // UNIT
        starts = np.arange(0, units - span + 1)
        for bits in WIDTHS:
            if bits == 0 and size != UNIT:
                continue
            errors = np.empty(len(starts))
            for at in starts:
                y = samples[:, at * UNIT : at * UNIT + size]
                if bits:
                    y = y - dequantize_rows(*quantize_rows(y, bits))
                errors[at] = float(y.square().sum(1).mean())
            choices.append((span, bits, errors, np.full(len(starts), size * bits + (SIDE_BITS if bits else 0))))

    def solve(multiplier: float) -> tuple[float, list[_Group]]:
        best, back = np.full(units + 1, np.inf), [(0, 0)] * (units + 1)
        best[0] = 0.0
        for at in range(units):
            for span, bits, errors, cost in choices:
                if at + span <= units:
                    total = best[at] + errors[at] + multiplier * cost[at]
                    if total < best[at + span]:
                        best[at + span], back[at + span] = total, (span, bits)
        groups, at = [], units
        while at:
            span, bits = back[at]
            groups.append(_Group((at - span) * UNIT, at * UNIT, bits))
            at -= span
        spent = sum((g.stop - g.start) * g.bits + (SIDE_BITS if g.bits else 0) for g in groups)
        return spent, groups[::-1]

    low, high = -60.0, 40.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if solve(2.0**middle)[0] > bits_per_token else (low, middle)
    return [g for g in solve(2.0**high)[1] if g.bits]


def require_ratio(ratio: float = 16.0) -> None:
    """Raise InputError for a ratio out of range."""
    if not 1 < ratio <= 400:
        raise InputError(f"kvtc: ratio={ratio:g} is outside 1 to 400.")


@dataclass(frozen=True)
class _Coded:
    data: bytes
    tokens: int

    @property
    def nbytes(self) -> int:
        return len(self.data)


class Kvtc:
    """`ratio`: fp16 bytes over bytes before DEFLATE, what the dynamic programme is asked for."""

    name = "kvtc"
    exact_bits = 16

    def __init__(self, bases: tuple[Pca, Pca], shape: tuple[int, int, int], ratio: float = 16.0) -> None:
        require_ratio(ratio)
        self.options: dict[str, Any] = {"ratio": ratio}
        self.bases, self.shape = bases, shape
        samples = torch.cat([b.samples for b in bases], dim=1)
        energy = samples.square().mean(0)
        self.order = torch.argsort(energy, descending=True)
        self.groups = allocate(samples[:, self.order], 16 * samples.shape[1] / ratio)

    def encode(self, block: KVBlock) -> _Coded:
        """Transform, quantize, pack, deflate."""
        y = torch.cat(
            [
                (x.reshape(block.tokens, -1).to(b.mean) - b.mean) @ b.rows.T
                for x, b in zip((block.keys, block.values), self.bases, strict=True)
            ],
            dim=1,
        )[:, self.order]
        parts = []
        for g in self.groups:
            codes, scale, offset = quantize_rows(y[:, g.start : g.stop], g.bits)
            widths = torch.full((g.stop - g.start,), g.bits, dtype=torch.uint8)
            packed = pack_codes(codes, widths)
            parts += [packed, scale.view(torch.uint8), offset.view(torch.uint8)]
        body = torch.cat([p.reshape(-1) for p in parts]).cpu().numpy().tobytes() if parts else b""
        return _Coded(zlib.compress(body, LEVEL), block.tokens)

    def decode(self, encoded: _Coded) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values."""
        mean = self.bases[0].mean
        body = torch.frombuffer(bytearray(zlib.decompress(encoded.data)) or bytearray(1), dtype=torch.uint8)
        body = body.to(mean.device)
        t, at = encoded.tokens, 0
        y = mean.new_zeros(t, 2 * len(mean))

        def take(columns: int) -> Tensor:
            nonlocal at
            at += t * columns
            return body[at - t * columns : at].view(t, columns)

        for g in self.groups:
            size = g.stop - g.start
            widths = torch.full((size,), g.bits, dtype=torch.uint8)
            codes = unpack_codes(take(size * g.bits // 8), widths)
            scale, offset = (take(2).contiguous().view(torch.float16) for _ in range(2))
            y[:, self.order[g.start : g.stop]] = dequantize_rows(codes, scale, offset)
        out = [
            (part @ b.rows + b.mean).view(t, *self.shape) for part, b in zip(y.chunk(2, dim=1), self.bases, strict=True)
        ]
        return out[0], out[1]


METHOD = MethodEntry(
    "kvtc",
    "PCA over layers, dynamic-programming bits, DEFLATE",
    "arXiv 2511.01815",
    lambda context, **options: grouped(
        context.loaded.geometry,
        lambda layers, g: Kvtc(context.pca(layers), (g.layers, g.kv_heads, g.head_dim), **options),
    ),
    {"ratio": float},
    ({"ratio": 8.0}, {"ratio": 16.0}, {"ratio": 32.0}),
    check=require_ratio,
)
