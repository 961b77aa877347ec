"""`KVBlock`: the unit that every codec works on, a run of tokens of one sequence over all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from spectralquant.rotary import Rotation

BLOCK = 128
SINKS = 4


@dataclass(frozen=True)
class KVBlock:
    """Keys and values of T consecutive tokens.

    keys (before RoPE) and values: float32 `[T, L, Hk, D]`. start: position of the first token.
    received: float32 `[T, L, H]`, attention received from later queries of the token's own block and the next one
    (its own query left out), or None where attention was not observed.
    token_ids: int64 `[T]`, and previous_id, the id just before the block (−1 for none): what the token predictor reads.
    rotations: per layer, or None for layers without RoPE; for codecs that work after RoPE.
    """

    keys: Tensor
    values: Tensor
    start: int
    received: Tensor | None = None
    token_ids: Tensor | None = None
    previous_id: int = -1
    rotations: tuple[Rotation | None, ...] = ()

    def of_layers(self, layers: Sequence[int]) -> KVBlock:
        """The same tokens in some of the layers."""
        if tuple(layers) == tuple(range(self.keys.shape[1])):
            return self
        index = list(layers)
        return replace(
            self,
            keys=self.keys[:, index],
            values=self.values[:, index],
            received=None if self.received is None else self.received[:, index],
            rotations=tuple(self.rotations[i] for i in index) if self.rotations else (),
        )

    @property
    def tokens(self) -> int:
        return self.keys.shape[0]

    @property
    def fp16_bytes(self) -> int:
        """Bytes of this block held in fp16."""
        return 2 * (self.keys.numel() + self.values.numel())
