"""Random blocks there and back: the same bytes from every device, and what is damaged refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from research.coder.symbols import SymbolSample
from spectralquant.codec.cold import rans_block
from spectralquant.codec.cold.entropy import EntropyCoder
from spectralquant.codec.cold.symbols import SHIFTS
from spectralquant.codec.packet import CODED, PacketHeader, SpectralPacket
from spectralquant.errors import PacketError

Progress = Callable[[str, int, int], None]
MOST_TOKENS = 512
NAMES = (
    "blocks",
    "bytes_differ",
    "wrong_on_cpu",
    "wrong_on_device",
    "damaged",
    "damage_refused",
    "damage_refused_on_cpu",
    "packets_damaged",
    "packets_refused",
)


def random_round_trips(
    sample: SymbolSample, device: torch.device, count: int, progress: Progress, seed: int = 0
) -> dict[str, int]:
    """Blocks of random shapes and symbols: the same bytes from CPU and `device`, decoded on both; then damaged ones.

    damaged: blocks without their checksums, one bit of whose words is wrong: refused by the coder alone on `device`
    (damage_refused) and on the CPU. packets_damaged: packets of these blocks, any one of whose bits is wrong.
    """
    rng = np.random.default_rng(seed)
    found = dict.fromkeys(NAMES, 0)
    while found["blocks"] < count:
        progress("random blocks", found["blocks"], count)
        ranks = rng.integers(1, 60, 2)
        rows = [torch.from_numpy(rng.integers(0, c.shape[1], r)) for r, c in zip(ranks, _choices(sample), strict=True)]
        choice = tuple(c[:, r].contiguous() for r, c in zip(rows, _choices(sample), strict=True))
        here, there = (EntropyCoder(sample.tables, choice, d) for d in ("cpu", device))
        lengths = rng.integers(1, 300, min(100, count - found["blocks"])).tolist()
        total = sum(lengths)
        scale = torch.from_numpy(np.exp(rng.normal(-1, 2, (int(ranks.sum()), 1))))
        symbols = (
            (torch.from_numpy(rng.standard_normal((int(ranks.sum()), total))) * scale).round().clamp(-(2**29), 2**29)
        )
        symbols, classes = symbols.int(), torch.from_numpy(rng.integers(0, 9, (total, 2)))
        ids = [None if rng.random() < 0.3 else (-1, rng.integers(0, 70_000, n)) for n in lengths]
        adaptive = bool(rng.random() < 0.5)
        first = here.encode(symbols, classes, lengths, ids, adaptive_tables=adaptive)
        second = there.encode(symbols.to(device), classes.to(device), lengths, ids, adaptive_tables=adaptive)
        data = [rans_block.join(p) for p in first]
        found["bytes_differ"] += sum(a != rans_block.join(b) for a, b in zip(data, second, strict=True))
        blocks = [rans_block.split(d, here.ranks, len(SHIFTS)) for d in data]
        for name, coder in (("wrong_on_cpu", here), ("wrong_on_device", there)):
            back = coder.decode(blocks)
            same = torch.equal(back.symbols.cpu().int(), symbols) and all(map(_same_ids, ids, back.ids))
            found[name] += 0 if same else len(blocks)
        found["blocks"] += len(blocks)
        for block in blocks[:3]:
            damaged = _damaged(block, rng)
            found["damaged"] += 1
            found["damage_refused"] += _refused(there, damaged)
            found["damage_refused_on_cpu"] += _refused(here, damaged)
        for _ in range(3):
            found["packets_damaged"] += 1
            found["packets_refused"] += _packet_refused(_packet(data, lengths), rng)
    return found


def _choices(sample: SymbolSample):
    return sample.key_choice, sample.value_choice


def _same_ids(first, second) -> bool:
    return first is second is None or (first[0] == second[0] and np.array_equal(first[1], second[1]))


def _damaged(block: rans_block.RansParts, rng: np.random.Generator) -> rans_block.RansParts:
    """One flipped bit in the words, or in the states where there are none."""
    name = "words" if len(block.words) else "states"
    array = getattr(block, name).copy()
    array[rng.integers(len(array))] ^= array.dtype.type(1 << int(rng.integers(8 * array.itemsize)))
    return replace(block, **{name: array})


def _refused(coder: EntropyCoder, block: rans_block.RansParts) -> bool:
    try:
        coder.decode([block])
    except PacketError:
        return True
    return False


def _packet(blocks: Sequence[bytes], lengths: Sequence[int]) -> bytes:
    """A packet that holds blocks and nothing else."""
    total = sum(lengths)
    header = PacketHeader(1, 1, 1, total, MOST_TOKENS, 0, "float16", 1.0, bytes(16))
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    sections = [(start, n, CODED, data) for start, n, data in zip(starts, lengths, blocks, strict=True)]
    return bytes(SpectralPacket.build(header, sections))


def _packet_refused(data: bytes, rng: np.random.Generator) -> bool:
    """Whether a packet with one wrong bit is refused before anything in it is decoded."""
    wrong = bytearray(data)
    wrong[rng.integers(len(wrong))] ^= 1 << int(rng.integers(8))
    try:
        packet = SpectralPacket(bytes(wrong))
        for section in packet.sections:
            packet.body(section)
    except PacketError:
        return True
    return False
