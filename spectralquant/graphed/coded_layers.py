"""`CodedLayers`: hot codes of the layers that read everything, in buffers of fixed size with counters on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectralquant.geometry import BLOCK, SINKS, CacheGeometry
from spectralquant.graphed.lengths import Lengths
from sqkernels.common import ExactTokens, RowMatrices, RowPages
from sqkernels.spectral_compress import spectral_compress
from sqkernels.spectral_decode import spectral_decode
from sqkernels.spectral_index_decode import spectral_index_decode


class CodedLayers:
    """Pages for `lengths.pages` blocks of 128 tokens a sequence, and room for the tokens that are exact.

    A sequence's exact tokens lie at the start of its room: up to four sinks, then the tokens after the last coded one.
    Every sequence is aligned to its first real token, so that a batch may hold sequences of different lengths.

    Args:
        geometry: of these layers alone, numbered from 0. matrices: of all of them, layer after layer.
        backend: of the kernels. select: a layer: what part of the coded tokens a step reads (None: all).
    """

    def __init__(
        self,
        geometry: CacheGeometry,
        matrices: RowMatrices,
        lengths: Lengths,
        dtype: torch.dtype,
        backend: str,
        select: Sequence[float | int | None],
    ) -> None:
        self.geometry, self.matrices, self.lengths = geometry, matrices, lengths
        self.backend, self.select = backend, select
        heads, batch, device = geometry.kv_heads, lengths.batch, lengths.device
        parts = [range(layer * heads, (layer + 1) * heads) for layer in range(geometry.layers)]
        self.layers = [matrices.part(part.start, heads) for part in parts]
        self.coders = [matrices.part(part.start, heads, narrow=False) for part in parts]
        self.page_bytes = matrices.layout.page_bytes
        # One page more takes what sequences that have no block to code would write.
        count = batch * lengths.pages
        self.storage = torch.zeros(count + 1, self.page_bytes, dtype=torch.uint8, device=device)
        self.table = torch.arange(count, device=device, dtype=torch.int64).view(batch, -1) * self.page_bytes
        self.spare = torch.full((batch,), count * self.page_bytes, dtype=torch.int64, device=device)
        self.first = torch.zeros(batch, dtype=torch.int32, device=device)
        shape = (geometry.layers, batch, heads, lengths.room, geometry.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))

    def prefill(self, layer: int, keys: Tensor, values: Tensor, padding: Sequence[int]) -> None:
        """Take the prompt's keys (after RoPE) and values `[B, Hk, T, D]`; the first `padding[b]` tokens are none."""
        for row, skipped in enumerate(padding):
            real = keys.shape[2] - skipped
            coded = self.lengths.coded_of(real)
            for x, room in ((keys, self.keys), (values, self.values)):
                tokens = x[row, :, skipped:]
                sinks = min(SINKS, real)
                room[layer, row, :, :sinks] = tokens[:, :sinks]
                room[layer, row, :, sinks : real - coded] = tokens[:, sinks + coded :]
            if coded:
                blocks = [x[row, :, skipped + SINKS : skipped + SINKS + coded] for x in (keys, values)]
                blocks = [x.unflatten(1, (-1, BLOCK)).transpose(0, 1).contiguous() for x in blocks]
                self._code(*blocks, self.coders[layer], self.table[row, : coded // BLOCK])

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write one new token's keys and values `[B, Hk, 1, D]` behind the exact ones; `lengths.advance` came before."""
        at = self.lengths.place.view(-1, 1, 1, 1).expand_as(keys)
        self.keys[layer].scatter_(2, at, keys)
        self.values[layer].scatter_(2, at, values)

    def attend(self, layer: int, query: Tensor, scaling: float) -> Tensor:
        """Attention `[B, H, D]` of one query a sequence `[B, H, D]` over all of its tokens."""
        keys, values = self.keys[layer], self.values[layer]
        exact = ExactTokens(keys[:, :, :0], values[:, :, :0], keys, values, self.lengths.exact)
        pages = RowPages(self.storage.view(-1), self.table, self.first, self.lengths.coded, self.layers[layer])
        part = self.select[layer]
        if part is None:
            return spectral_decode(query, pages, exact, scaling, backend=self.backend)
        return spectral_index_decode(query, pages, exact, part, scaling, backend=self.backend)

    def compress(self) -> None:
        """Code the oldest block of every sequence whose room is full; `lengths.compressed` comes after."""
        due = self.lengths.due
        block = slice(SINKS, SINKS + BLOCK)
        rest = slice(SINKS + BLOCK, self.lengths.room)
        oldest = [x[:, :, :, block].transpose(0, 1).flatten(1, 2).contiguous() for x in (self.keys, self.values)]
        page = (self.lengths.coded // BLOCK).long().clamp_max(self.table.shape[1] - 1)[:, None]
        where = torch.where(due, self.table.gather(1, page).squeeze(1), self.spare)
        self._code(*oldest, self.matrices, where)
        for x in (self.keys, self.values):
            moved = torch.where(due.view(1, -1, 1, 1, 1), x[:, :, :, rest], x[:, :, :, SINKS:-BLOCK])
            x[:, :, :, SINKS:-BLOCK] = moved

    def _code(self, keys: Tensor, values: Tensor, matrices: RowMatrices, where: Tensor) -> None:
        spectral_compress(keys, values, matrices, self.storage.view(-1), where.contiguous(), backend=self.backend)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(t.nbytes for t in (self.storage, self.table, self.keys, self.values))
