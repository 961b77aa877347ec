"""What every tier takes, keeps and gives back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import unrotate_block_keys
from spectralquant.hooks.rotary_tables import Places, Rotations
from spectralquant.rotary import apply_rope


@dataclass(frozen=True)
class LeavingBlock:
    """A block that leaves the window: keys (after RoPE) and values `[L, Hk, T, D]` of one sequence.

    received: float32 `[T, L, H]`, NaN where it is not known, or None where it was not observed. rotations: per layer, None without RoPE.
    """

    keys: Tensor
    values: Tensor
    start: int
    rotations: Rotations
    received: Tensor | None = None
    token_ids: Tensor | None = None
    previous_id: int = -1

    @property
    def tokens(self) -> int:
        return self.keys.shape[2]

    def part(self, first: int, last: int) -> LeavingBlock:
        """Tokens first … last of this run."""
        some = slice(first, last)
        ids = self.token_ids
        return LeavingBlock(
            self.keys[:, :, some],
            self.values[:, :, some],
            self.start + first,
            tuple(None if r is None else r.part(some) for r in self.rotations),
            None if self.received is None else self.received[some],
            None if ids is None else ids[some],
            self.previous_id if not first or ids is None else int(ids[first - 1]),
        )

    def plain(self) -> KVBlock:
        """The block as codecs take it, keys before RoPE."""
        keys = self.keys.float().permute(2, 0, 1, 3)
        known = self.received is not None and not bool(self.received.isnan().any())
        return KVBlock(
            keys=unrotate_block_keys(self, keys),
            values=self.values.float().permute(2, 0, 1, 3),
            start=self.start,
            received=self.received if known else None,
            token_ids=self.token_ids,
            previous_id=self.previous_id,
            rotations=self.rotations,
        )


@dataclass(frozen=True, eq=False)
class StoredBlock:
    """A coded block of one sequence; immutable, so beams and copies share it. nbytes: what its payload holds.

    Blocks are told apart by identity: tables are keyed by the block itself, which keeps it alive as long as its entry.
    """

    tier: str
    start: int
    tokens: int
    payload: Any
    nbytes: int

    @property
    def stop(self) -> int:
        return self.start + self.tokens


@dataclass
class ReadScratch:
    """What one forward pass over one cache shares between layers; dropped at its end.

    rotary: rotations at places (a function, memoized here by the places' key).
    """

    rotary: Callable[[Places], Rotations]
    _rotations: dict[Any, Rotations] = field(default_factory=dict)
    decoded: dict[Any, Any] = field(default_factory=dict)

    def rotate(self, keys: Tensor, places: Places, layer: int) -> Tensor:
        """Apply RoPE to `keys: [S, Hk, D]` of one layer at S places."""
        if places.key not in self._rotations:
            self._rotations[places.key] = self.rotary(places)
        rotation = self._rotations[places.key][layer]
        return keys if rotation is None else apply_rope(keys, rotation.across(1))


class Tier(Protocol):
    """One way of holding blocks.

    `encode_run` codes consecutive blocks of one sequence, `lengths` tokens each, with as few operations as one takes. `dense` gives keys (after RoPE) and values float32 `[S, Hk, D]` of one layer of consecutive blocks; `whole` gives
    keys (after RoPE) and values `[L, Hk, T, D]` of one block.
    """

    name: str

    def encode(self, block: LeavingBlock) -> StoredBlock: ...

    def encode_run(self, run: LeavingBlock, lengths: Sequence[int]) -> list[StoredBlock]: ...

    def dense(
        self, layer: int, blocks: Sequence[StoredBlock], places: Places, scratch: ReadScratch
    ) -> tuple[Tensor, Tensor]: ...

    def whole(self, block: StoredBlock, places: Places, scratch: ReadScratch) -> tuple[Tensor, Tensor]: ...

    def to_bytes(self, block: StoredBlock) -> bytes: ...

    def from_bytes(self, data: bytes | memoryview, start: int, tokens: int) -> StoredBlock: ...


def block_ranges(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """First and one past the last token of each block in a run."""
    ends = list(itertools.accumulate(lengths))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def encode_each(tier: Tier, run: LeavingBlock, lengths: Sequence[int]) -> list[StoredBlock]:
    """`Tier.encode_run`, block by block."""
    return [tier.encode(run.part(first, last)) for first, last in block_ranges(lengths)]


def whole_from_layers(
    tier: Tier, layers: int, blocks: Sequence[StoredBlock], places: Places, scratch: ReadScratch
) -> tuple[Tensor, Tensor]:
    """`Tier.whole` of consecutive blocks by reading every layer."""
    both = [tier.dense(layer, blocks, places, scratch) for layer in range(layers)]
    return tuple(torch.stack([pair[i] for pair in both]).transpose(1, 2) for i in range(2))
