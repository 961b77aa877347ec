"""Even bits: all heads of a layer have equally many planes of four bits, and no budget is exceeded."""

import pytest
import torch

from spectralquant.calibration.fixed.bits import MaskGenerator
from spectralquant.calibration.fixed.even import Even

LAYERS, HEADS, DIM = 3, 2, 16


def generator(even):
    random = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, DIM).repeat(LAYERS * HEADS) * torch.rand(LAYERS * HEADS * DIM, generator=random)
    samples = torch.randn(500, LAYERS * HEADS * DIM, generator=random)
    return MaskGenerator(samples, scale.square(), in_place=True, even=even)


@pytest.mark.parametrize("bits", [1.0, 3.3, 4.0, 8.0])
def test_heads_of_a_layer_have_equally_many_planes(bits):
    mask = generator(Even(DIM, HEADS)).generate(bits).bits
    assert set(mask.tolist()) <= {0, 4, 8} and float(mask.float().mean()) <= bits
    planes = (mask.view(LAYERS, HEADS, DIM).long() // 4).sum(2)
    assert bool((planes == planes[:, :1]).all()) and bool((planes % (DIM // 2) == 0).all())
    assert float(mask.float().mean()) > bits - 8 / LAYERS / 4 - 1e-6


def test_free_bits_lose_less_for_the_same_bytes():
    even, free = (generator(e) for e in (Even(DIM, HEADS), None))

    def lost(of):
        bits = of.generate(4.0).bits.long()
        index = (torch.tensor(of.choices)[:, None] == bits).long().argmax(0)
        return float(of.distortion.gather(0, index[None]).sum())

    flat = float(even.distortion[even.choices.index(4)].sum())
    assert lost(free) < lost(even) < flat
