"""Speed of every method on one window: coding its blocks one by one, and the time to the next token when all are decoded first.

The library decodes the blocks of a packet together, which is faster (`sq study cold-speed`); here all methods do the same.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.evaluation.streaming import stream_window
from spectralquant.geometry import BLOCK
from spectralquant.methods.base import is_evicting
from spectralquant.methods.grouped import part_of
from spectralquant.models.forward import cache_of, with_cache
from spectralquant.models.load import LoadedModel
from spectralquant.provenance import device_facts
from spectralquant.results.studies import MethodSpeedRow

ROUNDS = 5


@dataclass(frozen=True)
class _Piece:
    """A block in a group of layers that are coded together. read: the next token reads some of it."""

    codec: Any
    block: KVBlock
    encoded: Any
    read: bool


@torch.no_grad()
def speed_rows(loaded: LoadedModel, ids: Tensor, methods: Sequence[Any]) -> list[MethodSpeedRow]:
    """A row a coding method on the window `ids: [T]`; methods that forget tokens have nothing to decode.

    Rates count all blocks of all layers. The next token waits for those blocks that it reads: of sliding layers, what is in reach.
    """
    row = ids[None].to(loaded.device)

    def prefill() -> Any:
        return cache_of(loaded.model(input_ids=row, use_cache=True, logits_to_keep=1))

    prefill_s = _median(prefill, loaded)
    cache = prefill()
    out = []
    for method in methods:
        if is_evicting(method):
            continue
        pieces = _pieces(loaded, ids, method)
        encode_s = _median(lambda p=pieces: [piece.codec.encode(piece.block) for piece in p], loaded)
        decode_s = _median(lambda p=pieces: [piece.codec.decode(piece.encoded) for piece in p], loaded)

        def first(own: Any, p: list[_Piece] = pieces) -> None:
            for piece in p:
                if piece.read:
                    piece.codec.decode(piece.encoded)
            loaded.model(input_ids=row[:, -1:], **with_cache(loaded.model, own), logits_to_keep=1)

        first_s = _median(first, loaded, lambda: copy.deepcopy(cache))
        size = sum(piece.block.fp16_bytes for piece in pieces)
        out.append(
            MethodSpeedRow(
                model=loaded.name,
                method=method.name,
                options=method.options,
                device=device_facts(loaded.device)["device"],
                context=len(ids),
                blocks=len({piece.block.start for piece in pieces}),
                encode_gb_s=size / encode_s / 1e9,
                decode_gb_s=size / decode_s / 1e9,
                first_token_s=first_s,
                prefill_s=prefill_s,
                **beside(loaded.device),
            )
        )
    return out


def beside(device: torch.device) -> dict[str, Any]:
    """What else runs on the device and its host: see `MethodSpeedRow`."""
    facts: dict[str, Any] = {"host_cores": os.cpu_count()}
    if hasattr(os, "getloadavg"):
        facts["host_load"] = os.getloadavg()[0]
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        facts["other_bytes"] = max(0, total - free - torch.cuda.memory_reserved(device))
    return facts


def _pieces(loaded: LoadedModel, ids: Tensor, method: Any) -> list[_Piece]:
    """What a window's blocks are coded to, in the order of the harness: block by block, in each group of layers."""
    groups = loaded.geometry.coded_groups(2 * BLOCK)
    out: list[_Piece] = []

    def keep(_: int, block: KVBlock, encoded: Any) -> None:
        group = groups[len(out) % len(groups)]
        read = block.start + block.tokens > group.first_read(len(ids))
        out.append(_Piece(part_of(method, group.layers), block, encoded, read))

    stream_window(loaded.model, loaded.geometry, ids, [method], keep)
    return out


def _median(work: Callable[..., Any], loaded: LoadedModel, prepare: Callable[[], Any] | None = None) -> float:
    """Median seconds of some rounds after one that warms up; what `prepare` returns is given to the work and not timed."""
    times = []
    for _ in range(ROUNDS + 1):
        given = () if prepare is None else (prepare(),)
        _wait(loaded)
        begin = time.perf_counter()
        work(*given)
        _wait(loaded)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def _wait(loaded: LoadedModel) -> None:
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
