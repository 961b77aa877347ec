"""Speed of every method on one window: coding its blocks one by one, and the time to the next token when all are decoded first.

The library decodes the blocks of a packet together, which is faster (`sq study cold-speed`); here all methods do the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.evaluation.streaming import stream_window
from spectralquant.methods.base import is_evicting
from spectralquant.models.forward import cache_of, with_cache
from spectralquant.models.load import LoadedModel
from spectralquant.provenance import device_facts
from spectralquant.results.studies import MethodSpeedRow

ROUNDS = 5


@torch.no_grad()
def speed_rows(loaded: LoadedModel, ids: Tensor, methods: Sequence[Any]) -> list[MethodSpeedRow]:
    """A row a coding method on the window `ids: [T]`; methods that forget tokens have nothing to decode."""
    row = ids[None].to(loaded.device)

    def prefill() -> Any:
        return cache_of(loaded.model(input_ids=row, use_cache=True, logits_to_keep=1))

    prefill_s, _ = _median(prefill, loaded)
    cache = prefill()
    out = []
    for method in methods:
        if is_evicting(method):
            continue
        coded: list[tuple[KVBlock, Any]] = []
        stream_window(loaded.model, loaded.geometry, ids, [method], lambda _, b, e, coded=coded: coded.append((b, e)))
        encode_s, _ = _median(lambda m=method, c=coded: [m.encode(block) for block, _ in c], loaded)
        decode_s, _ = _median(lambda m=method, c=coded: [m.decode(encoded) for _, encoded in c], loaded)

        def first(m: Any = method, c: Any = coded) -> None:
            for _, encoded in c:
                m.decode(encoded)
            loaded.model(input_ids=row[:, -1:], **with_cache(loaded.model, cache), logits_to_keep=1)
            cache.crop(-1)

        first_s, _ = _median(first, loaded)
        size = loaded.geometry.fp16_bytes_per_token * sum(block.tokens for block, _ in coded)
        out.append(
            MethodSpeedRow(
                model=loaded.name,
                method=method.name,
                options=method.options,
                device=device_facts(loaded.device)["device"],
                context=len(ids),
                blocks=len(coded),
                encode_gb_s=size / encode_s / 1e9,
                decode_gb_s=size / decode_s / 1e9,
                first_token_s=first_s,
                prefill_s=prefill_s,
            )
        )
    return out


def _median(work: Callable[[], Any], loaded: LoadedModel) -> tuple[float, Any]:
    """Median seconds of some rounds after one that warms up, and what the last returned."""
    times = []
    for _ in range(ROUNDS + 1):
        _wait(loaded)
        begin = time.perf_counter()
        result = work()
        _wait(loaded)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:]), result


def _wait(loaded: LoadedModel) -> None:
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
