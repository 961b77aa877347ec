"""Launch settings of the decode kernel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """See NOTES.md. programs: a multiprocessor's.

    overlap: see `runtime.overlap`. ahead: tiles of codes that a program then brings to the level-2 cache while the
    preparation runs.
    """

    block: int
    warps: int
    programs: int
    stages: int = 3
    overlap: bool = False
    ahead: int = 0


WIDE = Settings(block=128, warps=4, programs=4, overlap=True, ahead=4)
MANY = Settings(block=64, warps=2, programs=8)
MANY_HEADS = 32


def settings(kv_heads: int) -> Settings:
    """Small programs where key/value heads of all sequences fill the device, wide ones where few heads must."""
    return MANY if kv_heads >= MANY_HEADS else WIDE


def choose_splits(kv_heads: int, n_pages: int, processors: int) -> int:
    """Splits of the sequence: a few programs a multiprocessor, at least two pages each."""
    return max(1, min(settings(kv_heads).programs * processors // kv_heads, n_pages // 2, 128))
