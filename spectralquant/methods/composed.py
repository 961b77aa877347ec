"""`h2o+spectral` and the like: one method chooses tokens, another codes those that stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.methods.base import Method
from spectralquant.methods.eviction.evictor import Evictor
from spectralquant.methods.eviction.history import HistoryView
from spectralquant.methods.grouped import part_of


class Composed:
    """Of each block that leaves the window the evictor's best `keep` share of tokens is coded, the rest forgotten.

    A codec over all heads and layers codes whole tokens, so scores are averaged over heads and layers, and a block is
    decided on when it leaves.
    """

    def __init__(self, evictor: Evictor, codec: Method) -> None:
        self.evictor, self.codec, self.exact_bits = evictor, codec, codec.exact_bits
        self.mode, self.reads_content = evictor.mode, evictor.reads_content
        self.name = f"{evictor.name}+{codec.name}"
        self.options: dict[str, Any] = {**codec.options, **evictor.options}

    def for_layers(self, layers: tuple[int, ...]) -> Composed:
        """The same choice with a group's codec."""
        return Composed(self.evictor, part_of(self.codec, layers))

    def select(self, history: HistoryView, part: slice, block: KVBlock) -> tuple[Tensor, KVBlock, Any]:
        """See `ComposedMethod.select`."""
        scores = self.evictor.scores(history, 0)[..., part]
        scores = (scores / scores.abs().sum(-1, keepdim=True).clamp_min(1e-12)).mean((0, 1))
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        chosen[scores.topk(max(1, round(self.evictor.keep * len(scores)))).indices] = True
        kept = some_tokens(block, chosen)
        return chosen, kept, self.codec.encode(kept)

    def decode(self, encoded: Any) -> tuple[Tensor, Tensor]:
        """See `ComposedMethod.decode`."""
        return self.codec.decode(encoded)


def some_tokens(block: KVBlock, chosen: Tensor) -> KVBlock:
    """The chosen tokens of a block."""
    index = torch.nonzero(chosen).squeeze(1)
    pick = lambda x: None if x is None else x[index.to(x.device)]  # noqa: E731
    return replace(
        block,
        keys=pick(block.keys),
        values=pick(block.values),
        received=pick(block.received),
        token_ids=pick(block.token_ids),
        rotations=tuple(None if r is None else r.part(index.to(r.cos.device)) for r in block.rotations),
    )
