"""Encoding and decoding on two cores of a CPU, at the shape of a 0.5B model."""

from __future__ import annotations

import functools
from typing import Any

import torch

from research.cold_speed.codec import timed
from research.cold_speed.sample import SpeedSample, blocks_of, geometry_of, tier_of
from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.geometry import BLOCK
from spectralquant.models.shapes import ModelShape
from sqkernels.entropy import native

Row = dict[str, Any]
SHAPE = ModelShape("qwen2.5-0.5b", 24, 14, 2, 64, 896, 4864, 151936)
TOKENS = 2048
THREADS = 2


def cpu_rows(sample: SpeedSample, own: ModelShape, shape: ModelShape = SHAPE, tokens: int = TOKENS) -> list[Row]:
    """Seconds of `tokens` tokens: keys before RoPE and values in float32 to blocks in bytes, with attention seen, and back."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return _rows(sample, own, shape, tokens)
    finally:
        torch.set_num_threads(before)


def _rows(sample: SpeedSample, own: ModelShape, shape: ModelShape, tokens: int) -> list[Row]:
    device, geometry = torch.device("cpu"), geometry_of(shape)
    generator = torch.Generator().manual_seed(0)
    scaled = sample.at(shape, own, tokens // BLOCK)
    embedding = torch.randn(shape.vocab, shape.hidden, generator=generator)
    codec = SpectralCodec(tier_of(scaled, geometry, shape.hidden, device), geometry, embedding)
    text = sample.text(tokens)
    data = blocks_of(codec, scaled, text)
    received = torch.rand(tokens, shape.layers, shape.heads, generator=generator)
    keys, values = (torch.cat(x) for x in zip(*map(codec.decode, data), strict=True))
    blocks = []
    for at in range(0, tokens, BLOCK):
        part = slice(at, at + BLOCK)
        ids = torch.from_numpy(text[part]).long()
        blocks.append(KVBlock(keys[part], values[part], at, received[part], ids, int(text[at - 1]) if at else -1))
    fp16 = tokens * shape.kv_bytes_per_token
    base = {
        "model": shape.name,
        "context": tokens,
        "batch": 1,
        "fp16_bytes": fp16,
        "packet_bytes": sum(map(len, data)),
        "coder": "compiled" if native.available() else "numpy",
        "products": str(codec.dtype).removeprefix("torch."),
    }
    out = []
    for what, call in (
        ("encode on two CPU cores", functools.partial(codec.encode_run, blocks)),
        ("decode on two CPU cores", functools.partial(_decoded, codec, data)),
    ):
        seconds, spread = timed(call, False)
        out.append(base | {"what": what, "seconds": seconds, **spread, "gb_s": fp16 / seconds / 1e9})
    return out


def _decoded(codec: SpectralCodec, data: list[bytes]) -> None:
    for coded in codec.coefficients_run(data):
        codec.decode_coefficients(coded)
