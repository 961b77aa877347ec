"""Lossless chunks come back bit by bit, and only as what they are."""

import dataclasses

import pytest
import torch

from spectralquant.errors import PacketError
from spectralquant.integrations.chunks import Chunk, ChunkCodec, ChunkShape, LosslessChunks, open_codec

SHAPE = ChunkShape(kv_heads=(2, 1), head_dim=(8, 16), dtype=torch.bfloat16)


def chunk(start: int = 64, tokens: int = 12, shape: ChunkShape = SHAPE) -> Chunk:
    generator = torch.Generator().manual_seed(start)
    sides = [
        [
            torch.randn(h, tokens, d, generator=generator).to(shape.dtype)
            for h, d in zip(shape.kv_heads, shape.head_dim, strict=True)
        ]
        for _ in range(2)
    ]
    return Chunk(start, *sides)


def test_every_bit_comes_back_from_any_strides():
    codec = open_codec("lossless")
    assert isinstance(codec, ChunkCodec)
    first, second = chunk(0), chunk(64)
    turned = dataclasses.replace(second, keys=[k.mT.contiguous().mT for k in second.keys])
    back = codec.decode(codec.encode([first, turned]), SHAPE)
    assert [c.start for c in back] == [0, 64]
    for before, after in zip((first, second), back, strict=True):
        assert all(map(torch.equal, before.keys, after.keys)) and all(map(torch.equal, before.values, after.values))
        assert after.shape == SHAPE


@pytest.mark.parametrize("kind", ["cut", "empty", "other bytes"])
def test_damage_is_a_packet_error(kind):
    packet = LosslessChunks().encode([chunk()])[0]
    damaged = {"cut": packet[:-3], "empty": b"", "other bytes": b"\xff" * 64}[kind]
    with pytest.raises(PacketError):
        LosslessChunks().decode([damaged], SHAPE)


@pytest.mark.parametrize(
    "shape",
    [
        ChunkShape((2, 1, 1), (8, 16, 16), torch.bfloat16),
        ChunkShape((1, 2), (16, 8), torch.bfloat16),
        ChunkShape((2, 1), (8, 16), torch.float16),
    ],
    ids=["layers", "heads", "type"],
)
def test_another_shape_is_a_packet_error(shape):
    with pytest.raises(PacketError):
        LosslessChunks().decode(LosslessChunks().encode([chunk()]), shape)
