"""Coding many blocks at once: side bytes first, since the lanes carry them, then the streams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.cold.importance import NEUTRAL, UNSEEN
from spectralquant.codec.cold.rans.setting import CoderSetting
from spectralquant.codec.cold.rans_block import WIDE, RansParts, pack_classes
from spectralquant.codec.cold.symbols import NO_SHIFT
from spectralquant.streams import to_device, to_host
from sqkernels.entropy import BlockShape, StreamTable, encode, escape_positions

BlockIds = tuple[int, np.ndarray] | None


def encode_blocks(
    coder: CoderSetting,
    symbols: Tensor,
    classes: Tensor,
    lengths: Sequence[int],
    ids: Sequence[BlockIds],
    shifts: np.ndarray | None,
) -> list[RansParts]:
    """See `EntropyCoder.encode`; classes: uint8 `[2, N]`. The host waits for the device four times, whatever the number of blocks."""
    written = [_id_bytes(i) for i in ids]
    widths = [0 if i is None else _id_width(*i) for i in ids]
    shapes = [coder.shape(n, len(w)) for n, w in zip(lengths, written, strict=True)]
    table = StreamTable.of(shapes, coder.rows)
    contexts = coder.contexts(classes, shifts)
    positions, escapes = escape_positions(symbols, table, contexts, coder.tables)
    folded, wide, escape_counts = _folded(symbols, positions, escapes)
    sides = _sides(written, folded, wide, table.per_block(escape_counts))
    initial = _carried(sides, shapes)
    coded = encode(symbols, to_device([initial], coder.device), table, contexts, coder.tables)
    waiting = [to_host(t) for t in (coded.counts, coded.words, coded.states, classes)]
    counts, all_words, all_states, host_classes = (wait() for wait in waiting)
    words = _pieces(all_words, table.per_block(counts))
    states = _pieces(all_states, np.array([s.total_lanes for s in shapes]))
    streams = _pieces(np.stack([counts, escape_counts], axis=1), np.array([s.streams for s in shapes]))
    columns = _pieces(host_classes.T, np.array(lengths))
    return [
        RansParts(
            shape,
            widths[i],
            streams[i],
            (len(sides[i]) - len(written[i]) - int(streams[i][:, 1].sum())) // 4,
            _packed(columns[i]),
            None if shifts is None or (shifts[i] == NO_SHIFT).all() else shifts[i],
            states[i],
            words[i],
            sides[i][2 * shape.total_lanes :],
            bool(len(columns[i])) and columns[i][0, 0] == UNSEEN,
        )
        for i, shape in enumerate(shapes)
    ]


def _packed(classes: np.ndarray) -> np.ndarray | None:
    """Classes uint8 `[T, 2]` as a block holds them, or None where all are neutral or unseen."""
    alike = (classes == NEUTRAL).all() or (classes == UNSEEN).all()
    return None if alike else pack_classes(classes.T)


def _folded(symbols: Tensor, positions: Tensor, escapes: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A byte for each escaped value (v as 2v, −v as 2v − 1), the values int32 of those that need more, and escapes of each
    stream."""
    values = symbols.reshape(-1)[positions].long()
    folded = torch.where(values >= 0, 2 * values, -2 * values - 1)
    beyond = folded >= WIDE
    waiting = [to_host(t) for t in (folded.clamp_max(WIDE).to(torch.uint8), values[beyond].int(), escapes)]
    one_byte, wide, counts = (wait() for wait in waiting)
    return one_byte, wide, counts


def _sides(
    written: Sequence[np.ndarray], folded: np.ndarray, wide: np.ndarray, escapes: np.ndarray
) -> list[np.ndarray]:
    """Side bytes of each block: ids, escaped values, wide ones."""
    ends = np.cumsum(escapes)
    places = np.searchsorted(np.flatnonzero(folded == WIDE), ends)
    wide = wide.astype("<i4").view(np.uint8)
    out, first, before = [], 0, 0
    for ids, last, at in zip(written, ends, 4 * places, strict=True):
        out.append(np.concatenate([ids, folded[first:last], wide[before:at]]))
        first, before = last, at
    return out


def _carried(sides: Sequence[np.ndarray], shapes: Sequence[BlockShape]) -> np.ndarray:
    """What the lanes of all blocks carry, uint16 `[lanes]`: the first bytes of each block's side, then zeros."""
    out = np.zeros(2 * sum(s.total_lanes for s in shapes), np.uint8)
    at = 0
    for side, shape in zip(sides, shapes, strict=True):
        own = side[: 2 * shape.total_lanes]
        out[at : at + len(own)] = own
        at += 2 * shape.total_lanes
    return out.view("<u2")


def _pieces(array: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    return np.split(array, np.cumsum(counts)[:-1])


def _id_width(previous: int, ids: np.ndarray) -> int:
    return 2 if max(int(ids.max(initial=0)), previous) < 0xFFFF else 4


def _id_bytes(ids: BlockIds) -> np.ndarray:
    if ids is None:
        return np.zeros(0, np.uint8)
    both = np.concatenate([[ids[0]], ids[1]])
    return both.astype(f"<u{_id_width(*ids)}", casting="unsafe").view(np.uint8)
