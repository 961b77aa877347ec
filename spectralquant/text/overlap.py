"""Does scored text stand in the text that something was calibrated on? By hashes of token ids, at any offset.

Calibration keeps a hash of every 64 tokens; scored text is hashed at every offset, so any common run of 127 tokens or more is
found, wherever it begins. A hash is a multilinear sum modulo 2^64 (Carter & Wegman 1979), of which the upper 48 bits are kept.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

RUN = 64
HEX = 12


def _weights() -> np.ndarray:
    return np.random.default_rng(64).integers(0, 2**64, RUN, dtype=np.uint64) | np.uint64(1)


def _hashes(ids: np.ndarray, step: int) -> np.ndarray:
    """48-bit hashes, uint64, of runs of 64 tokens that begin at every `step`-th token of `ids: [n]`."""
    starts = range(0, len(ids) - RUN + 1, step)
    if not starts:
        return np.zeros(0, np.uint64)
    total = np.zeros(len(starts), np.uint64)
    for place, weight in enumerate(_weights()):
        total += (ids[place : place + starts[-1] + 1 : step] + np.uint64(1)) * weight
    return total >> np.uint64(16)


def block_hashes(windows: Tensor) -> str:
    """Hashes of every whole 64 tokens of windows `[n, T]`, twelve hexadecimal digits each."""
    rows = windows.cpu().numpy().astype(np.uint64)
    return "".join(f"{h:012x}" for row in rows for h in _hashes(row, RUN))


def overlap(blocks: str, windows: Tensor) -> float:
    """Share of the tokens of `windows: [n, T]` that stand in runs which the hashed text holds too, 0 to 1."""
    known = np.array([int(blocks[i : i + HEX], 16) for i in range(0, len(blocks), HEX)], np.uint64)
    rows = windows.cpu().numpy().astype(np.uint64)
    if not len(known) or not rows.size:
        return 0.0
    shared = 0
    for row in rows:
        found = np.isin(_hashes(row, 1), known)
        marked = np.zeros(len(row), bool)
        for start in np.flatnonzero(found):
            marked[start : start + RUN] = True
        shared += int(marked.sum())
    return shared / rows.size
