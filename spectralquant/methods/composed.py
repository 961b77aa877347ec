"""`h2o+spectral` and the like: one method chooses tokens, another codes those that stay."""

from __future__ import annotations

from collections.abc import Callable
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

    exact_bits = 16

    def __init__(self, evictor: Evictor, codec: Method) -> None:
        self.evictor, self.codec = evictor, codec
        self.name = f"{evictor.name}+{codec.name}"
        self.options: dict[str, Any] = {**codec.options, **evictor.options}

    def for_layers(self, layers: tuple[int, ...]) -> Composed:
        """The same choice with a group's codec."""
        return Composed(self.evictor, part_of(self.codec, layers))

    def evict(self, history: HistoryView, kept: Tensor, first_new: int, block: Callable[[], KVBlock]):
        """See `EvictingMethod.evict`."""
        scores = self.evictor.scores(history)
        scores = (scores / scores.sum(-1, keepdim=True).clamp_min(1e-12)).mean((0, 1))[first_new:]
        count = max(1, round(self.evictor.keep * len(scores)))
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        chosen[scores.topk(count).indices] = True
        out = kept.clone()
        out[..., first_new:] = chosen

        def code() -> tuple[KVBlock, Any, Callable[[], tuple[Tensor, Tensor]]]:
            part = some_tokens(block(), chosen)
            encoded = self.codec.encode(part)
            return part, encoded, lambda: self.codec.decode(encoded)

        return out, code

    def held_bytes(self, kept: Tensor, head_dim: int) -> int:
        """Not asked for: bytes are those of the codes."""
        raise NotImplementedError


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
