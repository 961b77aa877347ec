"""`CacheStats`: what a cache holds and what it has spent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from spectralquant.cache.report.uncompressed import NotCompressed


@dataclass(frozen=True)
class TierStats:
    """Blocks over all sequences and groups of layers; tokens over all sequences, of the group that reads furthest back; bytes of
    their codes (pages that sequences share are counted once); fp16_bytes of what can still be read of them.
    """

    blocks: int
    tokens: int
    bytes: int
    fp16_bytes: int


@dataclass(frozen=True)
class GroupStats:
    """Layers that read equally far back: `window` tokens, or all (None). coded: whether their tokens are coded at all (not
    where the window is no larger than what stays exact anyhow). Tokens over all sequences; those before are let go.
    """

    layers: int
    window: int | None
    coded: bool
    held_tokens: int
    coded_tokens: int
    coded_bytes: int


@dataclass
class Spent:
    """Seconds and counts since the cache was made.

    Seconds are of the host's clock. On a GPU they include waiting for work that was queued before. A read is of one layer:
    by a Triton kernel, in place by torch, or after reconstruction. kernel_refusal: why a kernel could not take the latest
    read that fell back to torch.
    """

    compress_s: float = 0.0
    reconstruct_s: float = 0.0
    wait_s: float = 0.0
    blocks_compressed: int = 0
    kernel_reads: int = 0
    in_place_reads: int = 0
    dense_reads: int = 0
    demotions: int = 0
    kernel_refusal: str | None = None


@dataclass(frozen=True)
class CacheStats:
    """Bytes are measured from storages. fp16_bytes: what transformers' own cache of the model would take in float16, of
    sliding layers their window alone. exact_tokens: over all sequences, of the layers that read furthest back.

    payload_ratio covers coded tokens that can still be read and all codes, resident_ratio what transformers' own cache would
    hold and every tensor that this one holds.
    ways: how many cold blocks took which of `codec.cold.complement.bounded_block.WAYS`.
    not_compressed: why (part of) the tokens were not compressed, or not read from what was compressed, and how many.
    """

    rows: int
    tokens: int
    fp16_bytes: int
    exact_bytes: int
    exact_tokens: int
    tiers: dict[str, TierStats]
    groups: tuple[GroupStats, ...]
    pool_bytes: int
    pool_fragmentation: float
    working_set_bytes: int
    resident_bytes: int
    payload_ratio: float | None
    resident_ratio: float | None
    spent: Spent
    reconstructor_failure: str | None
    over_budget: bool
    ways: dict[str, int]
    not_compressed: tuple[NotCompressed, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {**asdict(self), "not_compressed": [asdict(each) for each in self.not_compressed]}
