"""`GroupTokens`: the tokens of layers that read equally far back: coded blocks, and the layers' exact tokens around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectralquant.cache.tiers.base import StoredBlock
from spectralquant.cache.tokens.layer import SpectralLayer
from spectralquant.cache.tokens.span import GroupSpan
from spectralquant.geometry import BLOCK, SINKS, CacheGeometry, LayerGroup


@dataclass
class GroupTokens:
    """Tokens in order: 4 sinks (while first is 0), coded blocks (`sequences[b]`), recent tokens (in `layers`).

    geometry: of these layers alone. coded: whether blocks are coded at all; layers whose window is no larger than what
    stays exact anyhow only keep that window.
    """

    span: GroupSpan
    geometry: CacheGeometry
    layers: list[SpectralLayer]
    coded: bool
    sequences: list[list[StoredBlock]] = field(default_factory=list)

    @classmethod
    def of(cls, span: GroupSpan, model: CacheGeometry, layers: Sequence[SpectralLayer], window: int) -> GroupTokens:
        """An empty group out of all `layers` of a model, where `window` tokens at least stay exact."""
        kind = span.kind
        return cls(span, model.part(kind.layers), [layers[i] for i in kind.layers], kind.reads_beyond(window + BLOCK))

    @property
    def kind(self) -> LayerGroup:
        """See `GroupSpan`."""
        return self.span.kind

    @property
    def first(self) -> int:
        """See `GroupSpan`."""
        return self.span.first

    @property
    def recent_from(self) -> int:
        """See `GroupSpan`."""
        return self.span.recent_from

    @property
    def recording(self) -> bool:
        """See `GroupSpan`."""
        return self.span.recording

    @property
    def total(self) -> int:
        """Tokens per sequence so far, held or not."""
        return self.layers[0].get_seq_length()

    @property
    def coded_tokens(self) -> int:
        """Tokens per sequence in blocks."""
        return sum(b.tokens for b in self.sequences[0]) if self.sequences else 0

    @property
    def next_start(self) -> int:
        """Where the next block begins."""
        return self.recent_from if self.first else max(SINKS, self.recent_from)

    def next_stop(self, start: int) -> int:
        """Where the block that holds token `start` ends."""
        return (start // BLOCK + 1) * BLOCK

    def recent(self, row: int, start: int, stop: int) -> list[Tensor]:
        """Keys and values `[L, Hk, T, D]` of recent tokens start … stop of one sequence, and what attention they received
        `[T, L, H]` (NaN where that is not known). Nothing here waits for the device.
        """
        part = slice(start - self.recent_from, stop - self.recent_from)
        both = [torch.stack([getattr(x, name)[row, :, part] for x in self.layers]) for name in ("keys", "values")]
        if any(layer.received is None for layer in self.layers):
            return [*both, None]
        received = torch.stack([x.received[row, :, part] for x in self.layers]).permute(2, 0, 1).contiguous()
        return [*both, received]

    def append_blocks(self, coded: Sequence[Sequence[StoredBlock]]) -> None:
        """Replace the oldest recent tokens by their blocks (`coded[i][row]`)."""
        tokens = sum(blocks[0].tokens for blocks in coded)
        sinks = not self.first and not self.coded_tokens
        for blocks in coded:
            for row, block in enumerate(blocks):
                self.sequences[row].append(block)
        for layer in self.layers:
            if sinks:
                layer.take_sinks(SINKS)
            layer.drop_oldest(tokens + SINKS * sinks)
        self.span.recent_from = coded[-1][0].stop if coded else self.recent_from

    def forget_unread(self, *, cropped: bool = False) -> None:
        """Let go of tokens that no later query can read: whole blocks, or (where nothing is coded yet) recent tokens.

        While recording, only after a crop.
        """
        keep = (self.recording and not cropped) or not self.sequences
        first = 0 if keep else self.kind.first_read(self.total)
        dead = sum(block.stop <= first for block in self.sequences[0]) if first else 0
        if dead:
            for layer in self.layers:
                layer.drop_sinks()
            for blocks in self.sequences:
                del blocks[:dead]
            self.span.first = self.sequences[0][0].start if self.sequences[0] else self.recent_from
        stop = first // BLOCK * BLOCK if self.coded else first
        if not self.coded_tokens and stop > self.first:
            for layer in self.layers:
                layer.drop_oldest(stop - self.recent_from, keep_storage=True)
            self.span.first = self.span.recent_from = stop

    def rest(self) -> None:
        """A pass has ended; see `SpectralLayer.rest`."""
        for layer in self.layers:
            layer.rest()

    def uncroppable(self, target: int) -> str | None:
        """Why only `target` tokens cannot be kept, or None: what their next query reads must still be held."""
        if not target or self.first <= self.kind.first_read(target):
            return None
        return (
            f"sliding layers (layer {self.kind.layers[0]} reads {self.kind.window} tokens) have let go of the first "
            f"{self.first}"
        )

    def truncate(self, target: int, whole: Callable[[int, StoredBlock], tuple[Tensor, Tensor]]) -> None:
        """Keep the oldest `target` tokens; a block that is cut becomes exact again, as `whole(row, block)` gives it."""
        drop = self.total - target
        for layer in self.layers:
            layer.keep_newest_but(min(drop, layer.shape[2]))
        while self.coded_tokens and self.total > target:
            last = self.sequences[0][-1]
            both = []
            if last.start < target:
                both = [whole(row, blocks[-1]) for row, blocks in enumerate(self.sequences)]
            for blocks in self.sequences:
                blocks.pop()
            self.span.recent_from = last.start
            for index, layer in enumerate(self.layers if both else ()):
                kept = [torch.stack([pair[i][index] for pair in both])[:, :, : target - last.start] for i in range(2)]
                layer.give_back(*kept)
        if not self.coded_tokens:
            for layer in self.layers:
                layer.merge_sinks()
            self.span.recent_from = 0 if not self.first else self.recent_from
            if target == 0:
                self.span.first = self.span.recent_from = 0
            extra = self.total - target
            for layer in self.layers:
                layer.keep_newest_but(extra)

    def as_it_is(self) -> dict[str, Any]:
        """What there is, by reference: tensors and blocks are replaced, never changed."""
        blocks = {
            "sequences": [list(row) for row in self.sequences],
            "first": self.first,
            "recent_from": self.recent_from,
        }
        return {**blocks, "layers": [dict(vars(layer)) for layer in self.layers]}

    def go_back(self, before: dict[str, Any]) -> None:
        """Become again what `as_it_is` gave."""
        self.sequences, self.span.first, self.span.recent_from = (
            before["sequences"],
            before["first"],
            before["recent_from"],
        )
        for layer, attributes in zip(self.layers, before["layers"], strict=True):
            vars(layer).clear()
            vars(layer).update(attributes)

    def select_sequences(self, index: Tensor) -> None:
        """Keep sequences `index`, in that order; blocks are shared."""
        for layer in self.layers:
            layer.select_sequences(index)
        self.sequences = [list(self.sequences[i]) for i in index.tolist()]

    def clear(self) -> None:
        """Forget all tokens."""
        self.sequences, self.span.first, self.span.recent_from = [], 0, 0
        for layer in self.layers:
            layer.reset()


def narrow_windows(groups: Sequence[GroupTokens], exact_bits: int) -> tuple[str | None, bool]:
    """What is to be said of layers that are not coded, or None; and whether these are all layers."""
    exact = [group for group in groups if not group.coded]
    if not exact:
        return None, False
    held = "at 8 bits a number" if exact_bits == 8 else "as it is, which is what transformers' own cache does"
    count, window = sum(len(group.layers) for group in exact), max(group.kind.window for group in exact)
    text = (
        f"{count} of {sum(len(group.layers) for group in groups)} layers read {window:,} tokens at most, no more than a cache "
        f"keeps exact: they hold their window {held}."
    )
    return text, len(exact) == len(groups)
