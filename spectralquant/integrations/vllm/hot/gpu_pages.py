"""`HotPages`: what one page of 128 tokens of one layer holds on a GPU, and how it is written and read by `sqkernels`.

A page is a layer's rows (see `sqkernels.common.layout`), and behind them its first four tokens as they are: those of a text's
first page are its attention sinks, which fixed-rate codes do badly. Pages of all layers are equally long, as the engine wants them;
the longest layer's rows decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.codec.hot.linear import row_matrices
from spectralquant.geometry import BLOCK, SINKS
from spectralquant.integrations.vllm.hot.profile import pages_tier
from spectralquant.profile.model import CalibrationProfile
from sqkernels.common import ExactTokens, RowPages
from sqkernels.common.runtime import choose
from sqkernels.spectral_decode import spectral_decode
from sqkernels.spectral_reconstruct import spectral_reconstruct
from sqkernels.spectral_slots import page_bytes, spectral_slots


@dataclass(frozen=True)
class Sequences:
    """R sequences whose tokens are all in pages. offsets: int64 `[R, n]`, first byte of every page. first_page: int64 `[R]`. lengths:
    int32 `[R]` tokens. coded, exact, skipped: int32 `[R]`, of them the coded ones, the sinks, and the slots that sinks take."""

    offsets: Tensor
    first_page: Tensor
    coded: Tensor
    exact: Tensor
    skipped: Tensor

    @classmethod
    def empty(cls, count: int, pages: int, device: torch.device) -> Sequences:
        """Room for `count` sequences of at most `pages` pages."""
        numbers = [torch.zeros(count, dtype=torch.int32, device=device) for _ in range(3)]
        numbers[2].fill_(SINKS)
        first_page = torch.zeros(count, dtype=torch.int64, device=device)
        return cls(torch.zeros(count, pages, dtype=torch.int64, device=device), first_page, *numbers)

    def fill(self, table: Tensor, lengths: Tensor, page_bytes: int) -> Sequences:
        """The first sequences' pages int `[R, n]` and tokens int `[R]`; views of them. Nothing is read back from the device."""
        count, width = table.shape[0], min(table.shape[1], self.offsets.shape[1])
        out = self.rows(0, count)
        out.offsets[:, :width].copy_(table[:, :width]).mul_(page_bytes)
        out.first_page.copy_(table[:, 0])
        out.exact.copy_(lengths.clamp(max=SINKS))
        out.coded.copy_((lengths - SINKS).clamp(min=0))
        return out

    def rows(self, first: int, last: int) -> Sequences:
        """Some of the sequences."""
        return Sequences(*(x[first:last] for x in vars(self).values()))


class HotPages:
    """Pages of a profile's hot tier, for an engine whose keys and values have two bytes a number."""

    def __init__(self, profile: CalibrationProfile, device: torch.device | str, backend: str = "auto") -> None:
        tier = pages_tier(profile)
        self.geometry, self.backend = profile.geometry, backend
        choose(backend, torch.device(device))
        self.layers = [row_matrices(tier, profile.geometry, [i], device) for i in range(profile.geometry.layers)]
        heads = self.geometry.kv_heads
        longest = max(page_bytes(m, SINKS) for m in self.layers)
        self.slot_bytes = -(-longest // (BLOCK * heads))

    @property
    def page_bytes(self) -> int:
        """Bytes of 128 tokens of one layer."""
        return BLOCK * self.geometry.kv_heads * self.slot_bytes

    def write(self, layer: int, pages: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Code keys (after RoPE) and values `[T, Hk, D]` into pages uint8 `[P, page_bytes]`, slots int64 `[T]` (page · 128 + place;
        negative: not at all)."""
        spectral_slots(keys, values, self.layers[layer], pages, slots, SINKS, backend=self.backend)

    def decode(self, layer: int, pages: Tensor, query: Tensor, sequences: Sequences, scale: float) -> Tensor:
        """Attention `[R, H, D]` of one query a sequence over all its tokens."""
        none = query.new_empty(len(query), self.geometry.kv_heads, 0, self.geometry.head_dim)
        exact = ExactTokens(none, none, *self._exact(layer, pages, sequences.first_page, query.dtype), sequences.exact)
        coded = RowPages(pages.view(-1), sequences.offsets, sequences.skipped, sequences.coded, self.layers[layer])
        return spectral_decode(query, coded, exact, scale, backend=self.backend)

    def read(
        self, layer: int, pages: Tensor, sequence: Sequences, first: int, count: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Keys and values `[T, Hk, D]` of `count` tokens of one sequence from `first` on, a multiple of 128."""
        some = sequence.offsets[:, first // BLOCK : -(-(first + count) // BLOCK)]
        both = spectral_reconstruct(pages.view(-1), some, self.layers[layer], dtype, backend=self.backend)
        if first == 0:
            exact = self._exact(layer, pages, sequence.first_page, dtype)
            for x, kept in zip(both, exact, strict=True):
                x[:, :, :SINKS] = kept
        keys, values = (x[0, :, :count].transpose(0, 1) for x in both)
        return keys, values

    def _exact(self, layer: int, pages: Tensor, first_page: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Keys and values `[R, Hk, 4, D]` of the sinks of some pages."""
        kv, dim = self.geometry.kv_heads, self.geometry.head_dim
        nbytes, start = 2 * SINKS * kv * dim, self.layers[layer].layout.page_bytes
        parts = (pages[:, start + kind * nbytes : start + (kind + 1) * nbytes] for kind in (0, 1))
        return [x.index_select(0, first_page).view(dtype).view(-1, kv, SINKS, dim) for x in parts]
