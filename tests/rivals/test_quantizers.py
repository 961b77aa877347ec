"""Codecs against the packages that they stand for. Needs optimum-quanto and hqq: `make test-rivals`."""

import pytest
import torch
from transformers.cache_utils import HQQQuantizedLayer, QuantoQuantizedLayer

from spectralquant.codec.block import KVBlock
from spectralquant.methods.coding.hf_quantized import HfQuantized
from spectralquant.methods.coding.kivi import quantize_groups

LAYERS = {"quanto": QuantoQuantizedLayer, "hqq": HQQQuantizedLayer}


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(128, 2, 3, 64, generator=generator) for _ in range(2)]


@pytest.mark.parametrize(("backend", "bits"), [("quanto", 2), ("quanto", 4), ("hqq", 2), ("hqq", 4), ("hqq", 8)])
def test_hf_quantized_reads_what_transformers_cache_reads(backend, bits):
    pytest.importorskip({"quanto": "optimum.quanto", "hqq": "hqq"}[backend])
    keys, values = pair()
    block = KVBlock(keys=keys, values=values, start=128, rotations=(None, None))
    method = HfQuantized(backend=backend, bits=bits)
    ours = method.decode(method.encode(block))
    for layer in range(2):
        theirs = LAYERS[backend](nbits=bits, residual_length=1)
        tensors = [x[:, layer].transpose(0, 1)[None].contiguous() for x in (keys, values)]
        theirs.update(*tensors)
        empty = tensors[0][:, :, :0]
        for mine, other in zip(ours, theirs.update(empty, empty), strict=True):
            assert torch.equal(mine[:, layer].transpose(0, 1)[None], other.float())


@pytest.mark.parametrize("bits", [2, 4])
def test_kivis_groups_err_no_more_than_quantos(bits):
    """The same groups of 32 values with a scale and an offset; KIVI's offset is no whole step, so it fits a little better."""
    quanto = pytest.importorskip("optimum.quanto")
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    kind = {2: quanto.qint2, 4: quanto.qint4}[bits]
    scale, shift = quanto.MaxOptimizer()(x, kind, 0, 32)
    theirs = quanto.quantize_weight(x, kind, 0, scale, shift, 32).dequantize()
    ours = quantize_groups(x.view(-1, 32), bits).values().view_as(x).float()
    errors = [float((y - x).square().mean().sqrt()) for y in (ours, theirs)]
    assert 0.8 * errors[1] < errors[0] <= 1.02 * errors[1]
