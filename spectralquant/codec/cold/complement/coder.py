"""`ComplementCoder`: coefficients of all heads to symbols and bytes, at a step, and back.

A band is 16 components of a head. Each takes the rung of the ladder that codes its symbols shortest, or none, where all
are 0; heads without any symbol cost a bit. Symbols are chosen by error + price · bits, as in the first stage.

======  ========  ==================================================================
offset  size      field
======  ========  ==================================================================
0       ⌈H/8⌉     a bit for each head (keys first, layer by layer): whether it is coded, head 0 lowest
…       bands     of each coded head, a byte a band: 0 all zero, else the rung plus 1
…       …         a block of `codec.rans_block` without ids and classes: the rows of the bands that are not zero
======  ========  ==================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.cold import rans_block
from spectralquant.codec.cold.complement.ladder import ladder
from spectralquant.codec.cold.complement.rounding import HALF, PASSES, PRICE, cheaper_symbols
from spectralquant.codec.cold.entropy import EntropyCoder
from spectralquant.codec.cold.importance import CLASSES, NEUTRAL
from spectralquant.codec.cold.table_shifts import ShiftSearch
from spectralquant.errors import PacketError
from sqkernels.entropy.tables import VALUES

BAND = 16
LIMIT = 2.0**24
DEAD_ZONE = 0.6


@dataclass(frozen=True)
class ComplementSymbols:
    """Symbols int32 `[H·D, T]`, the rung of each band int64 `[H·bands]` (−1: all zero) and the bits `[H·bands]` that they take."""

    symbols: Tensor
    rungs: Tensor
    bits: Tensor


class ComplementCoder:
    """heads: H. dim: D."""

    def __init__(self, heads: int, dim: int, device: torch.device | str, price: float = PRICE) -> None:
        self.heads, self.dim, self.device, self.price = heads, dim, torch.device(device), price
        self.tables = ladder()
        self.search = ShiftSearch(self.tables, self.device)
        self.bits = self.search.exact.float().view(self.tables.count, VALUES)
        self.bands = -(-dim // BAND)
        band = torch.arange(dim) // BAND
        self.band_of_row = (torch.arange(heads)[:, None] * self.bands + band).flatten().to(self.device)
        self.rows_of_band = torch.bincount(self.band_of_row, minlength=heads * self.bands).float()

    def symbols(self, y: Tensor, steps: Tensor) -> ComplementSymbols:
        """Symbols of coefficients `y: [H, D, T]` at steps `[H, 1, T]`."""
        scaled = (y / steps).flatten().clamp_(-LIMIT, LIMIT)
        place = (scaled.abs() >= DEAD_ZONE).nonzero().squeeze(1)  # all that is not 0, a small part
        tokens, scaled = y.shape[2], scaled[place]
        value, band = scaled.round().int(), self.band_of_row[place // tokens]
        one = torch.ones(1, dtype=torch.float32, device=self.device)
        rungs, bits = self._rungs(value, band, tokens)
        for _ in range(PASSES):
            value *= rungs[band] >= 0
            lower = cheaper_symbols(value, scaled, rungs[band].clamp_min(0), one, self.bits, self.price)
            value = torch.where(value != 0, lower, value)
            rungs, bits = self._rungs(value, band, tokens, scaled)
        q = torch.zeros(y.numel(), dtype=torch.int32, device=self.device)
        q[place] = value * (rungs[band] >= 0)
        return ComplementSymbols(q.view(-1, tokens), rungs, bits)

    def _rungs(self, value: Tensor, band: Tensor, tokens: int, scaled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The cheapest rung of each band, and their bits; with `scaled`, none where the band is not worth its bits.

        value: symbols `[M]` of some places in `band: [M]`; all others are 0.
        """
        count = self.heads * self.bands
        flat = band * VALUES + value.clamp(-HALF, HALF - 1) + HALF
        histogram = torch.bincount(flat, minlength=count * VALUES).view(count, VALUES).float()
        histogram[:, HALF] = 0
        coded = histogram.sum(1)
        histogram[:, HALF] = self.rows_of_band * tokens - coded
        cost, rung = (histogram @ self.bits.T).min(1)
        empty = coded == 0
        if scaled is not None:
            gain = scaled.square() - (scaled - value).square()
            by_band = torch.zeros(count, dtype=torch.float32, device=self.device).index_add_(0, band, gain)
            empty |= by_band <= self.price * cost
        return torch.where(empty, -1, rung), torch.where(empty, 0.0, cost)

    def bits_of_heads(self, coded: ComplementSymbols) -> Tensor:
        """Bits `[H]` of each head's symbols and bands; 0 for heads without any."""
        by_head = coded.bits.view(self.heads, self.bands)
        live = (coded.rungs.view(self.heads, self.bands) >= 0).any(1)
        return torch.where(live, by_head.sum(1) + 8 * self.bands, 0.0)

    def total_bits(self, coded: ComplementSymbols) -> float:
        """Bits of the whole section."""
        return float(self.bits_of_heads(coded).sum()) + self.heads + 8 * rans_block.HEADER.size

    def values(self, symbols: Tensor, steps: Tensor) -> Tensor:
        """Coefficients `[H, D, T]` that symbols `[H·D, T]` stand for."""
        return symbols.view(self.heads, self.dim, -1) * steps

    def encode(self, coded: ComplementSymbols) -> bytes:
        """The section's bytes."""
        rungs = coded.rungs.view(self.heads, self.bands)
        live = (rungs >= 0).any(1)
        flags = np.packbits(live.cpu().numpy(), bitorder="little").tobytes()
        bands = (rungs[live] + 1).to(torch.uint8).cpu().numpy()
        rows = self._rows(coded.rungs)
        tokens = coded.symbols.shape[1]
        neutral = torch.full((tokens, 2), NEUTRAL, device=self.device)
        symbols = coded.symbols[rows].contiguous()
        parts = self._coder(coded.rungs, rows).encode(symbols, neutral, [tokens], [None])[0]
        return flags + bands.tobytes() + rans_block.join(parts)

    def decode(self, data: bytes | memoryview, tokens: int) -> Tensor:
        """Symbols `[H·D, T]`.

        Raises:
            PacketError: damaged bytes.
        """
        size = -(-self.heads // 8)
        if len(data) < size:
            raise PacketError("A block's second stage is shorter than its flags.")
        live = np.unpackbits(np.frombuffer(data, np.uint8, size), bitorder="little").astype(bool)
        count = int(live.sum()) * self.bands
        if live[self.heads :].any() or len(data) < size + count:
            raise PacketError("A block's second stage names heads that the model does not have, or lacks their bands.")
        bands = np.frombuffer(data, np.uint8, count, size).astype(np.int64) - 1
        if bands.max(initial=-1) >= self.tables.count:
            raise PacketError("A block's second stage names a table that does not exist.")
        rungs = np.full((self.heads, self.bands), -1, np.int64)
        rungs[live[: self.heads]] = bands.reshape(-1, self.bands)
        chosen = torch.from_numpy(rungs.reshape(-1)).to(self.device)
        rows = self._rows(chosen)
        parts = rans_block.split(data[size + count :], (len(rows), 0), 1)
        if parts.shape.tokens != tokens or parts.id_width or parts.packed is not None:
            raise PacketError("A block's second stage does not fit its first.")
        decoded = self._coder(chosen, rows).decode([parts]).symbols
        out = torch.zeros(self.heads * self.dim, tokens, dtype=decoded.dtype, device=self.device)
        out[rows] = decoded
        return out

    def _rows(self, rungs: Tensor) -> Tensor:
        return (rungs[self.band_of_row] >= 0).nonzero().squeeze(1)

    def _coder(self, rungs: Tensor, rows: Tensor) -> EntropyCoder:
        """A coder of the rows of some bands, each row with its band's table."""
        choice = rungs[self.band_of_row[rows]].to(torch.uint8).expand(CLASSES, -1)
        nothing = torch.zeros(CLASSES, 0, dtype=torch.uint8)
        return EntropyCoder(self.tables, (choice, nothing), self.device)
