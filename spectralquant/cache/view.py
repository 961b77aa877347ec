"""`LayerView`: one layer of a cache as attention sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectralquant.attention.segments import CodeSegment, DenseSegment, RowSegment, Segment
from spectralquant.attention.tap import AttentionCall
from spectralquant.cache.tiers.hot import unused_slots
from spectralquant.cache.tiers.hot_rows import HotRowTier
from spectralquant.codec.block import BLOCK
from spectralquant.errors import InputError
from spectralquant.surroundings import own_arithmetic

if TYPE_CHECKING:
    from spectralquant.cache.spectral_cache import SpectralCache


class LayerView:
    """Keys and values of one layer, made dense or handed out in segments when asked for."""

    def __init__(self, cache: SpectralCache, index: int) -> None:
        self.cache, self.index = cache, index
        self.layer = cache.layers[index]
        batch, heads, self.recent, dim = self.layer.keys.shape
        self.shape = (batch, heads, self.layer.get_seq_length(), dim)
        self.dtype, self.device = self.layer.dtype, self.layer.device
        self._observed = 0

    @property
    def in_place(self) -> bool:
        """Whether some tokens are hot codes."""
        return any(kind == "hot" for kind, _, _ in self.cache.reader.runs())

    @property
    def rows(self) -> str | None:
        """The kernels' backend where hot codes are rows."""
        tier = self.cache.tiers.get("hot")
        return tier.backend if self.in_place and isinstance(tier, HotRowTier) else None

    @property
    def select(self) -> float | int | None:
        """What part of the rows a read takes."""
        return self.cache.options["select"]

    @property
    def watches(self) -> bool:
        """Whether attention is to tell how much each recent token received."""
        return self.cache.wants_received

    @own_arithmetic()
    def dense(self) -> tuple[Tensor, Tensor]:
        """Keys (after RoPE) and values `[B, Hk, S, D]` in the model's dtype."""
        layer, blocks = self.layer, self.cache.state.rows[0]
        if not blocks:
            both = ((layer.sink_keys, layer.keys), (layer.sink_values, layer.values))
            return tuple(pair[1] if not pair[0].shape[2] else torch.cat(pair, dim=2) for pair in both)
        coded = self._coded(0, len(blocks))
        keys = torch.cat([layer.sink_keys, coded.keys, layer.keys], dim=2)
        return keys, torch.cat([layer.sink_values, coded.values, layer.values], dim=2)

    @own_arithmetic()
    def segments(self) -> list[Segment]:
        """Sinks, runs of blocks and recent tokens, in token order."""
        layer = self.layer
        out: list[Segment] = [DenseSegment(layer.sink_keys, layer.sink_values)]
        for kind, first, last in self.cache.reader.runs():
            if kind == "hot" and self.rows is not None:
                tokens = sum(b.tokens for b in self.cache.state.rows[0][first:last])
                parts = [blocks[first:last] for blocks in self.cache.state.rows]
                out.append(RowSegment(self.cache.tiers["hot"].row_pages(self.index, parts), tokens))
            elif kind == "hot":
                tier = self.cache.tiers["hot"]
                rows = [blocks[first:last] for blocks in self.cache.state.rows]
                pages = [_stack([tier.pages(self.index, i, blocks) for blocks in rows]) for i in range(2)]
                out.append(CodeSegment(*pages, *tier.codec.layers[self.index], unused_slots(rows[0])))
            else:
                out.append(self._coded(first, last))
        out.append(DenseSegment(layer.keys, layer.values))
        return [s for s in out if s.tokens]

    def _coded(self, first: int, last: int) -> DenseSegment:
        pairs = [self.cache.reader.read(self.index, row, first, last) for row in range(self.shape[0])]
        keys, values = (_stack([p[i] for p in pairs]).transpose(1, 2).to(self.dtype) for i in range(2))
        return DenseSegment(keys, values)

    def allowed(self, call: AttentionCall) -> Tensor | None:
        """The call's mask over all tokens `[B or 1, 1, T, S]`, or None where it hides nothing."""
        return None if call.mask is None and call.query.shape[2] == 1 else call.allowed()

    @own_arithmetic()
    def observe(self, p: Tensor, position: int) -> None:
        """Add what queries at `position`, position + 1, … give to other tokens of their own and the previous block.

        Layers that share these keys attend after their owner; what they give is not counted, as calibration does not.
        """
        if position < self._observed:
            return
        self._observed = position + p.shape[2]
        base = self.shape[2] - self.recent
        row = 0
        while row < p.shape[2]:
            block = (position + row) // BLOCK
            rows = min(p.shape[2], (block + 1) * BLOCK - position) - row
            recent = p[:, :, row : row + rows, base:].clone()
            index = torch.arange(rows, device=p.device)
            recent[:, :, index, index + position + row - base] = 0
            recent[..., : max(0, (block - 1) * BLOCK - base)] = 0
            self.layer.received += recent.sum(2)
            row += rows

    def weights(self, p: Tensor) -> Tensor:
        """Probabilities `[B, H, T, S]` over all tokens."""
        return p

    def forget_received(self) -> None:
        """What recent tokens received is not known from here on; their blocks are coded without it."""
        self.layer.received.fill_(float("nan"))

    def note(self, how: str) -> None:
        """Count a read."""
        counter = f"{how}_reads"
        setattr(self.cache.spent, counter, getattr(self.cache.spent, counter) + 1)

    def refuse(self, reason: str) -> None:
        """Note why kernels do not take a read; an error where they were asked for."""
        self.cache.spent.kernel_refusal = reason
        if self.cache.options["kernels"] == "triton":
            raise InputError(
                f"kernels='triton' was asked for, but the kernel cannot read this layer: {reason}. Use kernels='auto', "
                "which reads such layers without a kernel and says so in stats()."
            )


def _stack(parts: list[Tensor]) -> Tensor:
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)
