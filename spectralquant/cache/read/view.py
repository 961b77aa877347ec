"""`LayerView`: one layer of a cache as attention sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.cache.groups import CacheGroup
from spectralquant.cache.read.segments import CodeSegment, DenseSegment, RowSegment, Segment
from spectralquant.cache.report.stats import Spent
from spectralquant.cache.tiers.hot import unused_slots
from spectralquant.cache.tiers.hot_rows import HotRowTier
from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK
from spectralquant.hooks.tap import AttentionCall
from spectralquant.surroundings import own_arithmetic


@dataclass(frozen=True)
class Reading:
    """How a cache is read. select, kernels: see `SpectralCache`. watches: whether attention is to tell how much each recent
    token received. spent: where reads are counted.
    """

    select: float | int | None
    kernels: str
    watches: bool
    spent: Spent


class LayerView:
    """Keys and values of one layer, made dense or handed out in segments when asked for.

    Of a sliding layer these are the tokens that the first of `new` queries can read, and those after it: what
    transformers' own cache gives attention. start: the index of the first of them. Without `new`, `dense` has a place for
    every token, and zeros for those that the layer has let go. place: the layer's number within its group.
    """

    def __init__(self, group: CacheGroup, place: int, reading: Reading, new: int | None = None) -> None:
        self.group, self.place, self.reading = group, place, reading
        self.tokens, self.layer = group.tokens, group.tokens.layers[place]
        batch, heads, recent, dim = self.layer.shape
        total = self.layer.get_seq_length()
        self.start = max(self.tokens.first, self.tokens.kind.first_read(total - (new or 0)))
        self.padding = self.start if new is None else 0
        self.recent = min(recent, total - self.start)
        self.shape = (batch, heads, total - self.start, dim)
        self.dtype, self.device = self.layer.dtype, self.layer.device
        self._observed = 0

    @property
    def in_place(self) -> bool:
        """Whether some tokens are hot codes."""
        return any(kind == "hot" for kind, _, _ in self._runs())

    @property
    def rows(self) -> str | None:
        """The kernels' backend where hot codes are rows."""
        tier = self.group.tiers.get("hot")
        return tier.backend if self.in_place and isinstance(tier, HotRowTier) else None

    @property
    def select(self) -> float | int | None:
        """What part of the rows a read takes."""
        return self.reading.select

    @property
    def watches(self) -> bool:
        """Whether attention is to tell how much each recent token received."""
        return self.reading.watches

    @own_arithmetic()
    def dense(self) -> tuple[Tensor, Tensor]:
        """Keys (after RoPE) and values `[B, Hk, S, D]` in the model's dtype."""
        parts = [s for s in (self._sinks(), *self._dense_runs(), self._recents()) if s.tokens]
        if len(parts) == 1 and not self.padding:
            return parts[0].keys, parts[0].values
        batch, heads, _, dim = self.shape
        let_go = torch.zeros(batch, heads, self.padding, dim, dtype=self.dtype, device=self.device)
        return tuple(torch.cat([let_go, *(getattr(s, name) for s in parts)], dim=2) for name in ("keys", "values"))

    def _runs(self) -> list[tuple[str, int, int]]:
        """`BlockReader.runs` without blocks that lie wholly before `start`."""
        skip = self._skipped_blocks()
        return [(kind, max(first, skip), last) for kind, first, last in self.group.reader.runs() if last > skip]

    def _skipped_blocks(self) -> int:
        return (
            sum(block.stop <= self.start for block in self.tokens.sequences[0])
            if self.start and self.tokens.sequences
            else 0
        )

    def _skipped_tokens(self, first: int) -> int:
        """Tokens of block `first` that lie before `start`."""
        return max(0, self.start - self.tokens.sequences[0][first].start)

    def _sinks(self) -> DenseSegment:
        return DenseSegment(*(x[:, :, self.start :] for x in (self.layer.sink_keys, self.layer.sink_values)))

    def _recents(self) -> DenseSegment:
        past = self.layer.shape[2] - self.recent
        return DenseSegment(*(x[:, :, past:] if past else x for x in (self.layer.keys, self.layer.values)))

    def _dense_runs(self) -> list[DenseSegment]:
        runs = self._runs()
        return [self._coded(runs[0][1], runs[-1][2])] if runs else []

    @own_arithmetic()
    def segments(self) -> list[Segment]:
        """Sinks, runs of blocks and recent tokens, in token order."""
        out: list[Segment] = [self._sinks()]
        for kind, first, last in self._runs():
            rows = [self.group.reader.codes(blocks[first:last]) for blocks in self.tokens.sequences]
            unread = self._skipped_tokens(first)
            if kind == "hot" and self.rows is not None:
                tokens = sum(b.tokens for b in rows[0]) - unread
                out.append(RowSegment(self.group.tiers["hot"].row_pages(self.place, rows, unread), tokens))
            elif kind == "hot":
                tier = self.group.tiers["hot"]
                pages = [_stack([tier.pages(self.place, i, blocks) for blocks in rows]) for i in range(2)]
                out.append(CodeSegment(*pages, *tier.codec.layers[self.place], unused_slots(rows[0]) + unread))
            else:
                out.append(self._coded(first, last))
        out.append(self._recents())
        return [s for s in out if s.tokens]

    def _coded(self, first: int, last: int) -> DenseSegment:
        pairs = [self.group.reader.read(self.place, row, first, last) for row in range(self.shape[0])]
        unread = self._skipped_tokens(first)
        keys, values = (_stack([p[i][unread:] for p in pairs]).transpose(1, 2).to(self.dtype) for i in range(2))
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
        base, position = self.start + self.shape[2] - self.recent, self.start + position
        row = 0
        while row < p.shape[2]:
            block = (position + row) // BLOCK
            rows = min(p.shape[2], (block + 1) * BLOCK - position) - row
            recent = p[:, :, row : row + rows, base - self.start :].clone()
            index = torch.arange(rows, device=p.device)
            recent[:, :, index, index + position + row - base] = 0
            recent[..., : max(0, (block - 1) * BLOCK - base)] = 0
            self.layer.received[:, :, -self.recent :] += recent.sum(2)
            row += rows

    def add_received(self, received: Tensor) -> None:
        """Add what all tokens received in a pass over a whole prompt, float32 `[B, H, S]`; see `observe`."""
        if self._observed:
            return
        self._observed = received.shape[2]
        self.layer.received[:, :, -self.recent :] += received[:, :, received.shape[2] - self.recent :]

    def weights(self, p: Tensor) -> Tensor:
        """Probabilities `[B, H, T, S]` over all tokens."""
        return p

    def forget_received(self) -> None:
        """What recent tokens received is not known from here on; their blocks are coded without it."""
        self.layer.received.fill_(float("nan"))

    def note(self, how: str) -> None:
        """Count a read."""
        counter = f"{how}_reads"
        setattr(self.reading.spent, counter, getattr(self.reading.spent, counter) + 1)

    def refuse(self, reason: str) -> None:
        """Note why kernels do not take a read; an error where they were asked for."""
        self.reading.spent.kernel_refusal = reason
        if self.reading.kernels == "triton":
            raise InputError(
                f"kernels='triton' was asked for, but the kernel cannot read this layer: {reason}. Use kernels='auto', "
                "which reads such layers without a kernel and says so in stats()."
            )


def _stack(parts: list[Tensor]) -> Tensor:
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)
