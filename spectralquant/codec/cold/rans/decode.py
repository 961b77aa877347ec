"""Decoding many blocks at once: what goes to the device, what comes back, and the side bytes.

The two halves are apart so that the host parses the next blocks while the device decodes these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.cold.importance import NEUTRAL, UNSEEN
from spectralquant.codec.cold.rans.setting import CoderSetting
from spectralquant.codec.cold.rans_block import WIDE, RansParts, unpack_classes
from spectralquant.codec.cold.symbols import NO_SHIFT, groups
from spectralquant.errors import PacketError
from spectralquant.streams import on_the_way, to_device, to_host
from sqkernels.entropy import Decoded, StreamTable, decode

BlockIds = tuple[int, np.ndarray] | None


@dataclass(frozen=True)
class SparseSymbols:
    """Decoded symbols int8 `[R, N]` with 0 in the flat places int64 `[E]` of escaped values; escaped: int32 `[E]`, on the device,
    and their largest magnitude. classes: uint8 `[2, N]`. ids: each block's id before it and its ids `[T]` (−1: unknown), or None.
    """

    symbols: Tensor
    positions: Tensor
    escaped: Tensor
    largest: int
    classes: Tensor
    ids: tuple[BlockIds, ...]


class PendingSymbols:
    """Blocks whose decoding has been enqueued.

    Raises:
        PacketError: more tokens than the words can hold, or numbers that contradict the profile.
    """

    def __init__(self, coder: CoderSetting, blocks: Sequence[RansParts]) -> None:
        self.coder, self.blocks = coder, blocks
        for b in blocks:
            if b.shape.tokens * coder.least_bits > 16 * (len(b.words) + len(b.states)):
                raise PacketError(
                    f"A block announces {b.shape.tokens} tokens, but {len(b.words)} words cannot code that many with this "
                    "profile's tables."
                )
            if b.unseen and coder.unseen != UNSEEN:
                raise PacketError("A block was coded with tables for tokens unseen, which this profile does not have.")
        device = coder.device
        self.classes = to_device(_classes(blocks), device, axis=1)
        shifts = None
        if any(b.shifts is not None for b in blocks):
            none = np.full(groups(coder.ranks[0]) + groups(coder.ranks[1]), NO_SHIFT, np.uint8)
            shifts = np.stack([none if b.shifts is None else b.shifts for b in blocks])
        streams = torch.from_numpy(np.concatenate([b.streams for b in blocks]))
        try:
            self.result: Decoded = decode(
                to_device([b.words for b in blocks], device),
                streams[:, 0].contiguous(),
                to_device([b.states for b in blocks], device),
                streams[:, 1].contiguous(),
                StreamTable.of([b.shape for b in blocks], coder.rows),
                coder.contexts(self.classes, shifts),
                coder.tables,
                dtype=torch.int8,
            )
        except ValueError as error:
            raise PacketError(f"A block contradicts its profile: {error}.") from error
        self._finals = to_host(self.result.finals)
        self._status = to_host(self.result.status)

    def finish(self) -> SparseSymbols:
        """Wait for the device, check, and read the side bytes.

        Raises:
            PacketError: the words, states or side bytes do not belong to these tables.
        """
        if self._status().any():
            raise PacketError("A block's entropy-coded words are damaged.")
        device = self.coder.device
        folded = on_the_way([sum(b.escapes for b in self.blocks)], np.dtype(np.uint8), device)
        ids, places, wide = split_sides(self.blocks, self._finals().view(np.uint8), folded.numpy())
        return SparseSymbols(
            self.result.symbols,
            self.result.positions,
            _unfolded(folded.to(device, non_blocking=True), places, wide),
            int(np.abs(wide.astype(np.int64)).max(initial=WIDE // 2 + 1)),
            self.classes,
            ids,
        )


def _classes(blocks: Sequence[RansParts]) -> list[np.ndarray]:
    """Uint8 `[2, N]` of consecutive blocks, in as few pieces as their lengths allow."""
    out = []
    for (tokens, stated), some in groupby(blocks, lambda b: (b.shape.tokens, b.packed is not None)):
        if stated:
            classes = unpack_classes(np.stack([b.packed for b in some if b.packed is not None]), tokens)
            out.append(classes.transpose(1, 0, 2).reshape(2, -1))
        else:
            out += [np.full((2, tokens), UNSEEN if b.unseen else NEUTRAL, np.uint8) for b in some]
    return out


def split_sides(
    blocks: Sequence[RansParts], held: np.ndarray, escapes: np.ndarray
) -> tuple[tuple[BlockIds, ...], np.ndarray, np.ndarray]:
    """Ids of each block, and of all blocks together int64 `[W]` places of wide ones among the escaped values, and those int32 `[W]`.

    held: uint8, what the lanes of all blocks held. escapes: uint8 `[E]`, is filled with the escaped values as bytes.

    Raises:
        PacketError: the bytes do not fit together.
    """
    ids: list[np.ndarray] = []
    places: list[np.ndarray] = [np.zeros(0, np.int64)]
    wide: list[np.ndarray] = [np.zeros(0, np.uint8)]
    at = begin = 0
    for b in blocks:
        lanes = 2 * b.shape.total_lanes
        own = held[at : at + lanes]
        at += lanes
        if b.side < lanes and own[b.side :].any():
            raise PacketError("A block's lanes end with data that nothing asks for.")
        first, last = b.id_bytes, b.id_bytes + b.escapes
        ids.append(_side(own, b.tail, 0, first))
        some = escapes[begin : begin + b.escapes]
        in_lanes = min(max(0, lanes - first), b.escapes)
        some[:in_lanes] = own[first : first + in_lanes]
        some[in_lanes:] = b.tail[max(0, first - lanes) :][: b.escapes - in_lanes]
        marked = some == WIDE
        if np.count_nonzero(marked) != b.wide:
            raise PacketError("A block holds another number of wide values than it announces.")
        if b.wide:
            places.append(np.flatnonzero(marked) + begin)
            wide.append(_side(own, b.tail, last, b.side))
        begin += b.escapes
    return _ids_of(blocks, ids), np.concatenate(places), np.concatenate(wide).view("<i4")


def _side(own: np.ndarray, tail: np.ndarray, first: int, last: int) -> np.ndarray:
    """Side bytes first … last of a block, of which the lanes held `own`."""
    if last <= len(own):
        return own[first:last]
    if first >= len(own):
        return tail[first - len(own) : last - len(own)]
    return np.concatenate([own[first:], tail[: last - len(own)]])


def _ids_of(blocks: Sequence[RansParts], parts: Sequence[np.ndarray]) -> tuple[BlockIds, ...]:
    """Ids of blocks from their bytes."""
    out: list[BlockIds] = [None] * len(blocks)
    for width in {b.id_width for b in blocks} - {0}:
        which = [i for i, b in enumerate(blocks) if b.id_width == width]
        numbers = np.concatenate([parts[i] for i in which]).view(f"<u{width}").astype(np.int64)
        numbers[numbers == (1 << 8 * width) - 1] = -1
        at = 0
        for i in which:
            count = blocks[i].shape.tokens + 1
            out[i] = (int(numbers[at]), numbers[at + 1 : at + count])
            at += count
    return tuple(out)


def _unfolded(folded: Tensor, where: np.ndarray, wide: np.ndarray) -> Tensor:
    """Int32 `[E]`: 2v and −2v − 1 back to v and −v, wide values in their places."""
    half = folded.int()
    values = (half >> 1) ^ -(half & 1)
    if len(where):
        values[to_device([where], folded.device)] = to_device([wide.astype(np.int32)], folded.device)
    return values
