"""TurboQuant: random rotation and a scalar Lloyd–Max codebook for every coordinate.

Source: Zandieh, Daliri, Hadian, Mirrokni 2025, "TurboQuant: Online Vector Quantization with Near-optimal Distortion
Rate", arXiv 2504.19874, algorithm 1 (the MSE variant). A rotated unit vector's coordinates follow a Beta law, so one
codebook, computed from the law alone, fits all; the norm is kept in float16.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.errors import InputError
from sqkernels.bitpack import pack_codes, unpack_codes

NORM_BYTES = 2
GRID = 20_001


@functools.cache
def beta_codebook(dim: int, bits: int) -> Tensor:
    """Lloyd–Max points float64 `[2^bits]` for a coordinate of a uniformly random unit vector in `dim` dimensions."""
    x = torch.linspace(-1, 1, GRID, dtype=torch.float64)
    density = (1 - x.square()).clamp_min(0) ** ((dim - 3) / 2)
    density = density / density.sum()
    cumulative = density.cumsum(0)
    targets = (torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits
    points = x[torch.searchsorted(cumulative, targets).clamp(max=GRID - 1)]
    mass = torch.cat([density.new_zeros(1), cumulative])
    moment = torch.cat([density.new_zeros(1), (density * x).cumsum(0)])
    for _ in range(300):
        middles = (points[1:] + points[:-1]) / 2
        edges = torch.cat([torch.tensor([0]), torch.searchsorted(x, middles), torch.tensor([GRID])])
        weight = mass[edges].diff()
        points = torch.where(weight > 0, moment[edges].diff() / weight.clamp_min(1e-300), points)
    return points


@functools.cache
def random_rotation(dim: int, seed: int) -> Tensor:
    """A Haar-random rotation float32 `[dim, dim]` (QR of a Gaussian matrix)."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    rotation: Tensor = q * torch.sign(r.diagonal())
    return rotation.float()


@dataclass(frozen=True)
class TurboCodes:
    """Packed codes uint8 `[N, ceil(bits·D/8)]` and norms float16 `[N]` of N vectors."""

    codes: Tensor
    norms: Tensor

    @property
    def nbytes(self) -> int:
        return self.codes.numel() + NORM_BYTES * self.norms.numel()


class TurboQuantizer:
    """Encode and decode vectors of D coordinates at `bits` bits each plus a float16 norm a vector."""

    def __init__(self, dim: int, bits: int, seed: int = 0) -> None:
        if not 1 <= bits <= 8:
            raise InputError(f"turboquant: bits={bits} is outside 1 to 8.")
        self.dim, self.bits = dim, bits
        self.rotation = random_rotation(dim, seed)
        self.points = beta_codebook(dim, bits).float()
        self.widths = torch.full((dim,), bits, dtype=torch.uint8)

    def encode(self, x: Tensor) -> TurboCodes:
        """Codes of `x: [N, D]`."""
        x = x.float()
        norms = x.norm(dim=1).clamp(max=65504).half()
        unit = x / norms.float().clamp_min(6e-8)[:, None]
        rotated = unit @ self.rotation.to(x.device).T
        points = self.points.to(x.device)
        middles = (points[1:] + points[:-1]) / 2
        codes = torch.bucketize(rotated, middles).to(torch.uint8)
        return TurboCodes(pack_codes(codes, self.widths), norms)

    def decode(self, coded: TurboCodes) -> Tensor:
        """Vectors float32 `[N, D]`."""
        codes = unpack_codes(coded.codes, self.widths).long()
        device = coded.codes.device
        unit = self.points.to(device)[codes] @ self.rotation.to(device)
        return unit * coded.norms.float()[:, None]


@dataclass(frozen=True)
class TurboProductCodes:
    """Codes of the MSE stage, packed signs uint8 `[N, D/8]` and residual norms float16 `[N]`."""

    base: TurboCodes
    signs: Tensor
    residual_norms: Tensor

    @property
    def nbytes(self) -> int:
        return self.base.nbytes + self.signs.numel() + NORM_BYTES * self.residual_norms.numel()


class TurboProductQuantizer:
    """Algorithm 2 (the inner-product variant): the MSE stage with one bit less, then a 1-bit quantized Johnson–
    Lindenstrauss sketch of the residual, which makes inner products with any query unbiased.
    """

    def __init__(self, dim: int, bits: int, seed: int = 0) -> None:
        if bits < 2:
            raise InputError(f"turboquant: variant=prod needs at least 2 bits, one of them for the sketch, not {bits}.")
        self.dim = dim
        self.base = TurboQuantizer(dim, bits - 1, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        self.sketch = torch.randn(dim, dim, generator=generator, dtype=torch.float32)
        self.ones = torch.ones(dim, dtype=torch.uint8)

    def encode(self, x: Tensor) -> TurboProductCodes:
        """Codes of `x: [N, D]`."""
        base = self.base.encode(x)
        residual = x.float() - self.base.decode(base)
        signs = (residual @ self.sketch.to(x.device).T > 0).to(torch.uint8)
        return TurboProductCodes(base, pack_codes(signs, self.ones), residual.norm(dim=1).clamp(max=65504).half())

    def decode(self, coded: TurboProductCodes) -> Tensor:
        """Vectors float32 `[N, D]` whose inner products with any fixed vector are unbiased."""
        signs = 2.0 * unpack_codes(coded.signs, self.ones).float() - 1
        back: Tensor = signs @ self.sketch.to(signs.device) * ((torch.pi / 2) ** 0.5 / self.dim)
        return self.base.decode(coded.base) + back * coded.residual_norms.float()[:, None]
