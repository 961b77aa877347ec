"""Launch settings of the scan and of the gather."""

from __future__ import annotations

from dataclasses import dataclass

from sqkernels.common.layout import PAGE
from sqkernels.spectral_index_decode.budget import CELL


@dataclass(frozen=True)
class Settings:
    """See NOTES.md. programs: of the scan, a multiprocessor. overlap: see `runtime.overlap`."""

    programs: int
    scan_warps: int
    block: int
    stages: int
    warps: int
    overlap: bool = False


WIDE = Settings(programs=8, scan_warps=4, block=128, stages=2, warps=4)
MANY = Settings(programs=4, scan_warps=4, block=32, stages=2, warps=1)
MANY_HEADS = 32


def settings(kv_heads: int) -> Settings:
    """Programs of one warp where key/value heads of all sequences fill the device, wide ones where a cell should take one
    step."""
    return MANY if kv_heads >= MANY_HEADS else WIDE


def cell_count(n_pages: int) -> int:
    """Cells of a sequence of `n_pages` pages."""
    return -(-n_pages * PAGE // CELL)


def cells_per_program(kv_heads: int, n_pages: int, processors: int) -> int:
    """Cells that one program of the scan works through."""
    programs = max(1, settings(kv_heads).programs * processors // kv_heads)
    return -(-cell_count(n_pages) // programs)
