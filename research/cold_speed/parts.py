"""The parts of the study, each rows and checks; one after the other they are the whole."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from research.coder.baselines import nvcomp_rows, zstd_row
from research.coder.round_trips import random_round_trips
from research.cold_speed.codec import Row, check, codec_rows, make_bench, product_rate, timed
from research.cold_speed.costs import QualityOf, quality_facts
from research.cold_speed.cpu import cpu_rows
from research.cold_speed.prefill import fitted_profile, plain_prefill_row, prefill_rows
from research.cold_speed.sample import SpeedSample
from research.cold_speed.working_set import working_set_rows
from spectralquant.cache.persist.prompt import coded_blocks
from spectralquant.geometry import BLOCK, LayerGroup
from spectralquant.models.load import load_model
from spectralquant.models.shapes import SHAPES, ModelShape

LARGE = "llama-3.1-8b"
SMALL = ("smollm2-135m", "gemma3-270m")
CONTEXTS = (8192, 32768)
SMALL_BATCH = 16
Progress = Callable[[str, int, int], None]
Measured = tuple[list[Row], dict[str, Any]]


@dataclass(frozen=True)
class Bearings:
    """What every part starts from. own: the shape that the sample was taken at. quality: for the part of that name alone."""

    sample: SpeedSample
    own: ModelShape
    device: torch.device
    random_blocks: int = 10_000
    quality: QualityOf | None = None
    progress: Progress = lambda stage, done, total: None


def codec_part(at: Bearings) -> Iterator[Measured]:
    """Decoding and encoding at the 8B shape, and at the built-in models' shapes, many contexts at once."""
    for tokens in CONTEXTS:
        yield _shape(at, SHAPES[LARGE], tokens, 1)
    for name in SMALL:
        for shape, tokens in _groups(SHAPES[name], CONTEXTS[0]):
            yield _shape(at, shape, tokens, SMALL_BATCH)
    yield [], {"product_tflop_s": product_rate(at.device)}


def _shape(at: Bearings, shape: ModelShape, tokens: int, batch: int) -> Measured:
    bench = make_bench(at.sample, at.own, shape, tokens, batch, at.device)
    return codec_rows(bench), {f"{shape.name}_{tokens}x{batch}": check(bench)}


def _groups(shape: ModelShape, tokens: int) -> Iterator[tuple[ModelShape, int]]:
    """Layers that read equally far back, as a shape of their own, and the tokens of whole blocks that a packet holds of them."""
    if not shape.windows:
        yield shape, tokens
        return
    for window in dict.fromkeys(shape.windows):
        layers = tuple(i for i, w in enumerate(shape.windows) if w == window)
        blocks = coded_blocks(LayerGroup(layers, window), tokens)
        kind = "full" if window is None else "sliding"
        coded = tokens if window is None else blocks[-1][1] - blocks[0][0]
        yield replace(shape, name=f"{shape.name}, {len(layers)} {kind} layers", layers=len(layers), windows=()), coded


def coders_part(at: Bearings) -> Iterator[Measured]:
    """General compressors on the symbols alone, and a copy of the keys and values as they are."""
    shape, tokens = SHAPES[LARGE], CONTEXTS[0]
    fp16 = tokens * shape.kv_bytes_per_token
    base = {"model": shape.name, "context": tokens, "batch": 1, "fp16_bytes": fp16}
    small = at.sample.at(shape, at.own, tokens // BLOCK).symbols.clamp(-128, 127).to(torch.int8)
    rows = []
    for coder in (*(nvcomp_rows(small.to(at.device)) if at.device.type == "cuda" else ()), zstd_row(small)):
        for what in ("encode", "decode"):
            named = {"what": f"{what}, symbols alone", "coder": coder["coder"], "packet_bytes": coder["bytes"]}
            seconds = coder[f"{what}_s"]
            rows.append(base | named | {"seconds": seconds, "gb_s": fp16 / seconds / 1e9})
    yield rows, {"symbols_of_other_coders": small.numel()}
    for tokens in CONTEXTS:
        fp16 = tokens * shape.kv_bytes_per_token
        yield [base | {"context": tokens, "fp16_bytes": fp16} | _copy_row(fp16, at.device)], {}


def _copy_row(fp16: int, device: torch.device) -> Row:
    cuda = device.type == "cuda"
    target = torch.empty(fp16 // 2, dtype=torch.float16, device=device).normal_()
    source = torch.empty(fp16 // 2, dtype=torch.float16, pin_memory=cuda).copy_(target)
    seconds, spread = timed(lambda: target.copy_(source, non_blocking=True), cuda)
    what = "copy of keys and values from pinned memory"
    return {"what": what, "seconds": seconds, **spread, "gb_s": fp16 / seconds / 1e9}


def prefill_part(at: Bearings) -> Iterator[Measured]:
    """Prefill with and without cold writing, and first tokens from packets, of a model of the 8B shape; prefill of the small one."""
    shape = SHAPES[LARGE]
    loaded = load_model(f"random:{shape.name}", device=str(at.device), dtype="bfloat16", offline=True)
    ids = torch.from_numpy(at.sample.text(max(CONTEXTS)).astype(np.int64))[None].to(at.device)
    profile = fitted_profile(loaded, at.sample, at.own, shape, ids)
    for tokens in CONTEXTS:
        yield prefill_rows(loaded, profile, ids[:, :tokens], shape), {}
        _let_go()
    yield working_set_rows(loaded, profile, ids[:, : CONTEXTS[0]], shape), {}
    del loaded, profile
    _let_go()
    small = SHAPES[SMALL[0]]
    loaded = load_model(f"random:{small.name}", device=str(at.device), dtype="bfloat16", offline=True)
    yield [plain_prefill_row(loaded, ids[:, : CONTEXTS[0]].expand(SMALL_BATCH, -1), small)], {}


def cpu_part(at: Bearings) -> Iterator[Measured]:
    """Two cores of the machine's CPU."""
    yield cpu_rows(at.sample, at.own), {}


def blocks_part(at: Bearings) -> Iterator[Measured]:
    """Random blocks and packets there and back."""
    yield [], random_round_trips(at.sample.symbols, at.device, at.random_blocks, at.progress)


def quality_part(at: Bearings) -> Iterator[Measured]:
    """What float16 and bfloat16 products, and unseen attention, cost a real model in KL and bytes."""
    assert at.quality is not None
    yield [], {"quality": quality_facts(at.quality, at.device)}


PARTS: dict[str, Callable[[Bearings], Iterator[Measured]]] = {
    "codec": codec_part,
    "coders": coders_part,
    "prefill": prefill_part,
    "cpu": cpu_part,
    "blocks": blocks_part,
    "quality": quality_part,
}


def _let_go() -> None:
    gc.collect()
    torch.cuda.empty_cache()
