"""Blocks in host memory to ready keys and values, and back, with the stages of both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from research.coder.symbols import SymbolSample
from research.cold_speed.sample import SpeedSample, blocks_of, geometry_of, tier_of
from spectralquant.codec.cold.fused.bases import STEP_COLUMNS
from spectralquant.codec.cold.fused.decode import FusedDecoder
from spectralquant.codec.cold.fused.encode import BlockRun, FusedEncoder
from spectralquant.codec.cold.fused.layer_slots import LayerSlots
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.products import half_product
from spectralquant.geometry import BLOCK
from spectralquant.models.shapes import ModelShape
from sqkernels.spectral_rows import TokenSlots, Turns

RUNS = 7
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A codec at a shape, blocks for `batch` contexts of `tokens` tokens, and a cache for them."""

    shape: ModelShape
    tokens: int
    batch: int
    codec: SpectralCodec
    blocks: list[bytes]
    ids: list[tuple[int, np.ndarray]]
    places: LayerSlots
    overhead: float

    @property
    def fp16_bytes(self) -> int:
        """Of the keys and values of all contexts."""
        return self.batch * self.tokens * self.shape.kv_bytes_per_token


def make_bench(
    sample: SpeedSample,
    own: ModelShape,
    shape: ModelShape,
    tokens: int,
    batch: int,
    device: torch.device,
    embedding: Tensor | None = None,
    *,
    neutral: bool = False,
) -> Bench:
    """Everything that a shape's rows need; see `research.cold_speed.sample`."""
    geometry = geometry_of(shape)
    count = batch * tokens // BLOCK
    scaled = sample.at(shape, own, count)
    if embedding is None:
        generator = torch.Generator(device).manual_seed(1)
        embedding = torch.randn(shape.vocab, shape.hidden, generator=generator, device=device).bfloat16()
    tier = tier_of(scaled, geometry, shape.hidden, device)
    codec = SpectralCodec(tier, geometry, embedding, device, dtype=torch.float16)
    text = np.tile(sample.text(tokens), batch)
    blocks = blocks_of(codec, scaled, text, neutral=neutral)
    ids = [(int(text[at - 1]) if at % tokens else -1, text[at : at + BLOCK]) for at in range(0, batch * tokens, BLOCK)]
    places = cache_for(shape, tokens, batch, device)
    return Bench(shape, tokens, batch, codec, blocks, ids, places, _overhead(codec, scaled, blocks))


def _overhead(codec: SpectralCodec, scaled: SymbolSample, blocks: Sequence[bytes]) -> float:
    """Bytes of the first blocks beyond what their tables charge and their ids, as a share."""
    some = blocks[:16]
    columns = slice(0, BLOCK * len(some))
    bits = codec.coder.ideal_bits(scaled.symbols[:, columns].int().to(codec.device), scaled.classes[columns])
    return (sum(map(len, some)) - 2 * (BLOCK + 1) * len(some)) / (bits / 8) - 1


def cache_for(shape: ModelShape, tokens: int, batch: int, device: torch.device) -> LayerSlots:
    """An empty cache in bfloat16, one tensor of keys and one of values a layer, with Llama's rotary tables."""
    size = (batch, shape.kv_heads, tokens, shape.head_dim)
    keys, values = ([torch.zeros(size, dtype=torch.bfloat16, device=device) for _ in range(shape.layers)] for _ in "kv")
    place = torch.arange(tokens, device=device).repeat(batch)
    row = torch.arange(batch, device=device).repeat_interleave(tokens)
    pairs = torch.arange(0, shape.head_dim, 2, device=device) / shape.head_dim
    angle = place[:, None] * 500_000.0**-pairs
    turns = Turns(angle.cos(), angle.sin())
    return LayerSlots.of(keys, values, TokenSlots.dense(keys[0], row, place), [turns] * shape.layers)


def codec_rows(bench: Bench) -> list[Row]:
    """A row of decoding and one of encoding."""
    base = {
        "model": bench.shape.name,
        "context": bench.tokens,
        "batch": bench.batch,
        "fp16_bytes": bench.fp16_bytes,
        "packet_bytes": sum(map(len, bench.blocks)),
        "rank_keys": bench.codec.coder.ranks[0],
        "rank_values": bench.codec.coder.ranks[1],
        "span": bench.codec.projectors[0].span,
        "streams_overhead_share": bench.overhead,
        "unique_ids": len(np.unique(np.concatenate([i for _, i in bench.ids]))),
    }
    rows = [_decode_row(bench) | base, _encode_row(bench) | base]
    for row in rows:
        row["gb_s"] = bench.fp16_bytes / row["seconds"] / 1e9
    return rows


def _decode_row(bench: Bench) -> Row:
    decoder = FusedDecoder(bench.codec)
    cuda = bench.codec.device.type == "cuda"
    stages: dict[str, list[float]] = {}

    def once() -> None:
        begin = _now(False)
        run = decoder.decode(bench.blocks)
        after = time.perf_counter()
        decoder.write(run, bench.places)
        launched = time.perf_counter()
        done = _now(cuda)
        for name, seconds in (
            ("entropy decoding and checks", after - begin),
            ("launching the rest", launched - after),
            ("products, prediction, turning, writing (after the check)", done - after),
        ):
            stages.setdefault(name, []).append(seconds)

    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds, spread = timed(once, cuda)
    row: Row = {"what": "decode", "seconds": seconds, **spread}
    if cuda:
        row["working_bytes"] = torch.cuda.max_memory_allocated() - before
    row["stages_s"] = {name: statistics.median(times[-RUNS:]) for name, times in stages.items()}
    row["ceiling_s"] = _product_seconds(bench, decoder) if cuda else None
    return row


def _product_seconds(bench: Bench, decoder: FusedDecoder) -> float:
    """The synthesis products alone."""
    run = decoder.decode(bench.blocks)
    width = bench.codec.geometry.layer_width
    step = max(1, STEP_COLUMNS // width)

    def products() -> None:
        for begin in range(0, run.tokens, 8192):
            for first in range(0, bench.codec.geometry.layers, step):
                for kind in range(2):
                    last = min(bench.codec.geometry.layers, first + step)
                    columns = slice(first * width, last * width)
                    decoder.product(run, kind, columns, begin, min(run.tokens, begin + 8192))

    return timed(products, True)[0]


def _encode_row(bench: Bench) -> Row:
    encoder = FusedEncoder(bench.codec)
    cuda = bench.codec.device.type == "cuda"
    received = None
    run = BlockRun(bench.places, [BLOCK] * len(bench.blocks), bench.ids, received)
    data = encoder.encode(run)
    seconds, spread = timed(lambda: encoder.encode(run), cuda)
    stages = {}
    if cuda and len(bench.blocks) * BLOCK <= 8192:
        stages["turning back, products, quantizing"] = timed(lambda: encoder.symbols(run), True)[0]
    return {
        "what": "encode",
        "seconds": seconds,
        **spread,
        "stages_s": stages,
        "raw_blocks": sum(d is None for d in data),
        "bytes_again": sum(len(d) for d in data if d is not None),
    }


def check(bench: Bench) -> Row:
    """What fused decoding writes against float64 on the CPU, for one block of some layers; and that encoding finds the symbols."""
    decoder, codec = FusedDecoder(bench.codec), bench.codec
    decoder.write(decoder.decode(bench.blocks), bench.places)
    g, at = codec.geometry, len(bench.blocks) // 2
    coded = codec.coefficients(bench.blocks[at])
    tokens = slice(BLOCK * at, BLOCK * (at + 1))
    worst, plain = 0.0, []
    for layer in (0, g.layers // 2, g.layers - 1):
        for kind in range(2):
            exact = _exact_layer(codec, coded, kind, layer)
            if kind == 0:
                t = bench.places.turns[layer].part(tokens.start, tokens.stop)
                a, b = exact.view(BLOCK, g.kv_heads, -1).chunk(2, dim=2)
                cos, sin = t.cos.double().cpu()[:, None], t.sin.double().cpu()[:, None]
                exact = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=2).flatten(1)
            cache = (bench.places.values if kind else bench.places.keys).tensors[layer]
            row, place = divmod(tokens.start, bench.tokens)
            written = cache[row, :, place : place + BLOCK].transpose(0, 1).flatten(1).double().cpu()
            worst = max(worst, float((written - exact).norm() / exact.norm()))
            plain.append(float((exact.bfloat16().double() - exact).norm() / exact.norm()))
    return {"relative_error": worst, "of_rounding_to_bfloat16": max(plain)}


def _exact_layer(codec: SpectralCodec, coded: Any, kind: int, layer: int) -> Tensor:
    """Float64 `[T, C]` on the CPU, from the profile's tensors."""
    basis, g = (codec.tier.key, codec.tier.value)[kind], codec.geometry
    start, group = layer * g.layer_width, layer * g.layer_width // codec.projectors[kind].span
    rows = slice(sum(basis.ranks[:group].tolist()), sum(basis.ranks[: group + 1].tolist()))
    own = slice(start - group * codec.projectors[kind].span, None)
    y = coded.y[kind][:, rows].double().cpu() * basis.back[rows].double()
    out = y @ basis.synthesis[rows, own][:, : g.layer_width].double()
    out += basis.mean[start : start + g.layer_width].double()
    f = coded.features
    if f is not None:
        both = torch.cat([f.rows[f.own], f.rows[f.before]], dim=1).double().cpu()
        out += both @ basis.predictor[:, start : start + g.layer_width].double()
    return out


def product_rate(device: torch.device) -> float:
    """Tflop/s of one large float16 product here: what the products can reach at most."""
    a, b = (torch.randn(8192, 8192, device=device).half() for _ in range(2))
    return 2 * 8192**3 / timed(lambda: half_product(a, b), device.type == "cuda")[0] / 1e12


def timed(call: Callable[[], Any], cuda: bool, runs: int = RUNS, warm: int = 2) -> tuple[float, Row]:
    """Median wall-clock seconds of a call until the device is idle, and spread; garbage collection waits."""
    for _ in range(warm):
        call()
    times = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(runs):
            begin = _now(cuda)
            call()
            times.append(_now(cuda) - begin)
    finally:
        gc.enable()
    times.sort()
    return statistics.median(times), {"seconds_low": times[runs // 5], "seconds_high": times[-1 - runs // 5]}


def _now(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
