"""A cold tier and packets at any shape, with the statistics of a real model's profile.

What decides the time is how many components are kept, how long the spans are, what the symbols are, and how often token ids come
again. All of it is taken from a real profile and text (`SymbolSample`, and the ids of the text): components repeat, each with its tables
and its symbols, until the share of kept components is the same at the new width; spans are those that `sq calibrate` chooses at the
shape; bases are random orthonormal rows, and the token predictor is random and small. Keys and values made by decoding such
packets have these spectra again, so encoding them is timed on them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from research.coder.symbols import SymbolSample
from spectralquant.calibration.basis.two_level import FINE_OUTER, MAX_INNER
from spectralquant.calibration.options import MAX_SPAN_WIDTH, CalibrationSettings
from spectralquant.codec.cold import rans_block
from spectralquant.codec.cold.features import MAX_DIMS
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.geometry import BLOCK, CacheGeometry
from spectralquant.models.shapes import ModelShape
from spectralquant.profile.factors import BasisFactors, IntegerRows, SmallForm
from spectralquant.profile.tensors import ColdTier, StoredBasis, empty

CENTROID = 0.9
PREDICTED_SHARE = 0.5


@dataclass(frozen=True)
class SpeedSample:
    """symbols: of real blocks, with their tables. ids: int64 `[n]`, of a real text."""

    symbols: SymbolSample
    ids: Tensor

    def save(self, path: str | Path) -> None:
        """As compressed numpy arrays."""
        s = self.symbols
        parts = {k: getattr(s, k).numpy() for k in ("tables", "key_choice", "value_choice", "symbols", "classes")}
        np.savez_compressed(path, source=s.source, ids=self.ids.numpy().astype(np.int32), **parts)

    @classmethod
    def load(cls, path: str | Path) -> SpeedSample:
        """Inverse of `save`."""
        with np.load(path, allow_pickle=False) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays if name not in ("source", "ids")}
            return cls(SymbolSample(**tensors, source=str(arrays["source"])), torch.from_numpy(arrays["ids"]).long())

    def at(self, shape: ModelShape, own: ModelShape, blocks: int, seed: int = 0) -> SymbolSample:
        """Symbols of `blocks` blocks at a shape; `own` is the shape that the sample was taken at."""
        scaled_up = self.symbols.scaled(shape.kv_bytes_per_token / own.kv_bytes_per_token, blocks, seed)
        return _of_rank(scaled_up, MAX_INNER)

    def text(self, tokens: int) -> np.ndarray:
        """The first `tokens` ids of the text, which begins anew where it ends."""
        return np.resize(self.ids.numpy(), tokens)


def _of_rank(scaled_up: SymbolSample, most: int) -> SymbolSample:
    """At most `most` components of each kind, evenly spaced: no basis across layers keeps more."""
    split = scaled_up.key_choice.shape[1]
    choices, symbols = [], []
    for choice, part in (
        (scaled_up.key_choice, scaled_up.symbols[:split]),
        (scaled_up.value_choice, scaled_up.symbols[split:]),
    ):
        rank = choice.shape[1]
        keep = torch.arange(min(rank, most)) * rank // min(rank, most)
        choices.append(choice[:, keep].contiguous())
        symbols.append(part[keep])
    return SymbolSample(scaled_up.tables, *choices, torch.cat(symbols), scaled_up.classes, scaled_up.source)


def geometry_of(shape: ModelShape) -> CacheGeometry:
    """A shape's cache."""
    return CacheGeometry(shape.layers, shape.heads, shape.kv_heads, shape.head_dim, (True,) * shape.layers)


def tier_of(
    scaled: SymbolSample, geometry: CacheGeometry, hidden: int, device: torch.device, seed: int = 0
) -> ColdTier:
    """A cold tier whose symbols are those of `scaled`; see the module's text."""
    generator = torch.Generator(device).manual_seed(seed)
    ranks = (scaled.key_choice.shape[1], scaled.value_choice.shape[1])
    dims = min(MAX_DIMS, hidden)
    bases, split = [], (scaled.symbols[: ranks[0]], scaled.symbols[ranks[0] :])
    for kind, (rank, symbols) in enumerate(zip(ranks, split, strict=True)):
        bases.append(_basis(kind, rank, symbols, geometry, dims, device, generator))
    projection = torch.randn(hidden, dims, generator=generator, device=device).cpu() / hidden**0.5
    heads = geometry.layers * geometry.heads
    return ColdTier(
        key=bases[0],
        value=bases[1],
        key_centroid=torch.full((ranks[0],), CENTROID),
        value_centroid=torch.full((ranks[1],), CENTROID),
        key_choice=scaled.key_choice,
        value_choice=scaled.value_choice,
        tables=scaled.tables,
        class_tables=torch.full((2, 9), 1 / 9),
        importance_weight=torch.zeros(heads + 2, 2),
        importance_bias=torch.zeros(2),
        embedding_projection=projection if hidden > MAX_DIMS else empty(),
    )


@functools.lru_cache(maxsize=4)
def _rows(rank: int, g: CacheGeometry, device: torch.device, seed: int) -> tuple[Tensor, BasisFactors | None]:
    """Random orthonormal rows float16 `[rank, P]` on the CPU, and their factors where the shape's basis has two levels."""
    generator = torch.Generator(device).manual_seed(seed)
    if CalibrationSettings().span_width(g) != g.width:
        raise ValueError(f"{g.width} coordinates are more than one basis takes")
    if g.width <= MAX_SPAN_WIDTH["dense"]:
        return _orthonormal(rank, g.width, device, generator).half().cpu(), None
    factors = _factors(rank, g, device, generator)
    return factors.rows("synthesis").half().cpu(), factors


def _basis(
    kind: int, rank: int, symbols: Tensor, g: CacheGeometry, dims: int, device: torch.device, generator: torch.Generator
) -> StoredBasis:
    """Random orthonormal rows a span, and weights that give coordinates a mean square of 1."""
    matrix, small = _rows(rank, g, device, int(generator.initial_seed()) + kind)
    variance = symbols.float().square().mean(1).clamp_min(1e-3)
    back = float((g.width / variance.sum()) ** 0.5)
    predictor = torch.randn(2 * dims, g.width, generator=generator, device=device).mul_(
        (PREDICTED_SHARE / (2 * dims)) ** 0.5
    )
    return StoredBasis(
        analysis=matrix,
        synthesis=matrix,
        gain=torch.full((rank,), 1 / back),
        back=torch.full((rank,), back),
        mean=torch.randn(g.width, generator=torch.Generator().manual_seed(0)),
        ranks=torch.tensor([rank]),
        variance=variance,
        predictor=predictor.half().cpu(),
        small=None if small is None else SmallForm((small,), IntegerRows.of(torch.zeros(0, 2 * dims), 0)),
    )


def _factors(rank: int, g: CacheGeometry, device: torch.device, generator: torch.Generator) -> BasisFactors:
    """As `sq calibrate` solves them in two levels: as many inner components as it takes at most, evenly over the layers."""
    own = min(g.layer_width, MAX_INNER // g.layers)
    inner = torch.cat([_orthonormal(own, g.layer_width, device, generator) for _ in range(g.layers)])
    outer = _orthonormal(rank, own * g.layers, device, generator)
    parts = IntegerRows.of(inner, len(inner)), IntegerRows.of(outer, FINE_OUTER)
    return BasisFactors(parts[0], parts[0], torch.full((g.layers,), own), parts[1], parts[1])


def _orthonormal(rank: int, span: int, device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(span, rank, generator=generator, device=device))[0].T.contiguous()


def blocks_of(codec: SpectralCodec, scaled: SymbolSample, ids: np.ndarray, *, neutral: bool = False) -> list[bytes]:
    """Coded blocks of a sample's symbols, with the text's ids. neutral: all tokens of the neutral class."""
    device, count = codec.device, scaled.symbols.shape[1] // BLOCK
    classes = torch.full_like(scaled.classes, 4) if neutral else scaled.classes
    out: list[bytes] = []
    for first in range(0, count, 64):
        some = slice(BLOCK * first, BLOCK * min(count, first + 64))
        own = [(int(ids[at - 1]) if at else -1, ids[at : at + BLOCK]) for at in range(some.start, some.stop, BLOCK)]
        parts = codec.coder.encode(
            scaled.symbols[:, some].int().to(device), classes[some].to(device), [BLOCK] * len(own), own
        )
        out += map(rans_block.join, parts)
    return out
