"""Symbols of real blocks, with the tables that code them; scaled to other shapes and lengths for timing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.cold.entropy import EntropyCoder
from spectralquant.codec.cold.rans_block import MODES, split
from spectralquant.codec.cold.symbols import SHIFTS
from spectralquant.codec.packet import CODED, SpectralPacket
from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK

if TYPE_CHECKING:
    from spectralquant.codec.cold.spectral import SpectralCodec


@dataclass(frozen=True)
class SymbolSample:
    """tables: float32 `[K, 32]`. key_choice, value_choice: uint8 `[9, R]`. symbols: int16 `[R, N]` of keys and values (cut
    off at ±32,767). classes: int64 `[N, 2]`. source: what they come from."""

    tables: Tensor
    key_choice: Tensor
    value_choice: Tensor
    symbols: Tensor
    classes: Tensor
    source: str

    @classmethod
    def of_packet(cls, codec: SpectralCodec, packet: SpectralPacket, source: str) -> SymbolSample:
        """Symbols of a packet's coded blocks, under the codec that wrote it.

        Raises:
            InputError: it has none.
        """
        data = [bytes(packet.body(s)) for s in packet.sections if s.kind == CODED]
        blocks = [d for d in data if d[0] in MODES]
        if not blocks:
            raise InputError("The packet has no coded blocks. Use a longer text (--window).")
        found = codec.coder.decode([split(d, codec.coder.ranks, len(SHIFTS)) for d in blocks])
        symbols = found.symbols.clamp(-32767, 32767).to(torch.int16).cpu()
        tier = codec.tier
        return cls(tier.tables, tier.key_choice, tier.value_choice, symbols, found.classes.cpu(), source)

    def save(self, path: str | Path) -> None:
        """As compressed numpy arrays."""
        np.savez_compressed(path, source=self.source, **{k: v.numpy() for k, v in self._tensors().items()})

    @classmethod
    def load(cls, path: str | Path) -> SymbolSample:
        """Inverse of `save`."""
        with np.load(path, allow_pickle=False) as found:
            tensors = {name: torch.from_numpy(found[name]) for name in found if name != "source"}
            return cls(**tensors, source=str(found["source"]))

    def _tensors(self) -> dict[str, Tensor]:
        names = ("tables", "key_choice", "value_choice", "symbols", "classes")
        return {name: getattr(self, name) for name in names}

    def coder(self, device: torch.device | str = "cpu") -> EntropyCoder:
        """The coder of these tables."""
        return EntropyCoder(self.tables, (self.key_choice, self.value_choice), device)

    def scaled(self, factor: float, blocks: int, seed: int = 0) -> SymbolSample:
        """`blocks` blocks of a model whose cache is `factor` times as wide, with the same statistics.

        Components repeat with their tables. Tokens are drawn anew; a repeated component takes its symbols from another
        token of the same class, so that no two columns or rows are alike.
        """
        rng = np.random.default_rng(seed)
        choices, parts = [], []
        classes = self.classes[torch.from_numpy(rng.integers(0, len(self.classes), BLOCK * blocks))]
        split = self.key_choice.shape[1]
        for kind, (choice, symbols) in enumerate(
            ((self.key_choice, self.symbols[:split]), (self.value_choice, self.symbols[split:]))
        ):
            rank = choice.shape[1]
            wide = max(1, round(rank * factor))
            origin = np.arange(wide) * rank // wide
            repeat = np.arange(wide) - np.searchsorted(origin, origin)
            out = torch.empty(wide, BLOCK * blocks, dtype=torch.int16)
            for turn in range(int(repeat.max()) + 1):
                rows = torch.from_numpy(np.flatnonzero(repeat == turn))
                tokens = _same_class(self.classes[:, kind].numpy(), classes[:, kind].numpy(), rng)
                out[rows] = symbols[torch.from_numpy(origin)[rows]][:, torch.from_numpy(tokens)]
            parts.append(out)
            choices.append(choice[:, torch.from_numpy(origin)].contiguous())
        return SymbolSample(self.tables, choices[0], choices[1], torch.cat(parts), classes, self.source)


def _same_class(have: np.ndarray, want: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For every wanted class a random token that has it."""
    order = np.argsort(have, kind="stable")
    starts = np.searchsorted(have[order], np.arange(10))
    low, high = starts[want], starts[want + 1]
    return order[low + (rng.random(len(want)) * (high - low)).astype(np.int64)]
