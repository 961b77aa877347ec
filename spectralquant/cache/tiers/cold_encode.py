"""A run of tokens that leaves the window, to cold bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from spectralquant.cache.tiers.base import LeavingBlock, block_ranges
from spectralquant.codec.cold.fused.encode import BlockRun, FusedEncoder
from spectralquant.codec.cold.fused.layer_slots import LayerSlots, turns_of
from spectralquant.codec.cold.spectral import SpectralCodec
from sqkernels.spectral_rows import TokenSlots


def encode_cold(codec: SpectralCodec, run: LeavingBlock, lengths: Sequence[int]) -> list[bytes]:
    """Blocks of `lengths` tokens each; all at once and straight from the run's tensors where the codec's products are float16 and it has no bound."""
    ranges = block_ranges(lengths)
    if codec.bound is not None or codec.dtype != torch.float16:
        return codec.encode_run([run.part(*each).plain() for each in ranges])
    coded = FusedEncoder(codec).encode(_block_run(codec, run, lengths))
    return [codec.encode(run.part(*each).plain()) if d is None else d for each, d in zip(ranges, coded, strict=True)]


def _block_run(codec: SpectralCodec, run: LeavingBlock, lengths: Sequence[int]) -> BlockRun:
    ids: list = [None] * len(lengths)
    if codec.features is not None and run.token_ids is not None:
        numbers = run.token_ids.cpu().long().numpy()
        ids = [
            (int(numbers[first - 1]) if first else run.previous_id, numbers[first:last])
            for first, last in block_ranges(lengths)
        ]
    keys, values = ([x[i][None] for i in range(len(x))] for x in (run.keys, run.values))
    place = torch.arange(run.tokens, device=run.keys.device)
    slots = TokenSlots.dense(keys[0], torch.zeros_like(place), place)
    received = None if run.received is None else run.received.to(codec.device)
    return BlockRun(LayerSlots.of(keys, values, slots, turns_of(run.rotations)), lengths, ids, received)
