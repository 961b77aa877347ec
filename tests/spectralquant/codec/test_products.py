"""Bfloat16 products are taken only where the quantizer's error hides theirs."""

from dataclasses import replace

import pytest
import torch
from profiles_for_tests import GEOMETRY, random_block, random_codec

from spectralquant.codec import products
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.projector import SpectralProjector

CPU = torch.device("cpu")


@pytest.fixture
def able(monkeypatch):
    monkeypatch.setattr(products, "_cpu_multiplies_bfloat16", lambda: True)


def test_the_expected_error_is_the_measured_one():
    tier = random_codec().tier
    basis = replace(tier.key, variance=torch.logspace(3, -1, 40))
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(4000, 40, generator=generator) * basis.variance.sqrt()
    exact = SpectralProjector(basis)
    x = exact.reconstruct(y, None) - basis.mean
    rounded = SpectralProjector(replace(basis, mean=torch.zeros(64), variance=torch.zeros(40)), CPU, torch.bfloat16)
    found = (
        rounded.project(x, None) - SpectralProjector(replace(basis, mean=torch.zeros(64))).project(x, None)
    ).square()
    assert 0.3 < float(found.mean()) / products.rounding_error(basis) < 3


def test_fine_steps_and_machines_without_units_get_float32_and_gpus_float16(able, monkeypatch):
    tier = random_codec().tier
    assert products.product_dtype(tier, CPU) == torch.bfloat16
    assert products.product_dtype(tier, CPU, step_scale=0.01) == torch.float32
    assert products.product_dtype(tier, torch.device("cuda")) == torch.float16
    monkeypatch.setattr(products, "_cpu_multiplies_bfloat16", lambda: False)
    assert products.product_dtype(tier, CPU) == torch.float32


def test_large_coefficients_are_exact_all_the_same():
    tier = random_codec().tier
    large = replace(tier.key, variance=torch.full((40,), 1e6))
    x = 1e3 * torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    exact, half = (
        SpectralProjector(large).project(x, None),
        SpectralProjector(large, CPU, torch.bfloat16).project(x, None),
    )
    assert torch.allclose(exact, half, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("units", [True, False])
def test_blocks_decode_within_a_step_either_way(units, monkeypatch):
    monkeypatch.setattr(products, "_cpu_multiplies_bfloat16", lambda: units)
    codec = SpectralCodec(random_codec().tier, GEOMETRY, None)
    assert codec.dtype == (torch.bfloat16 if units else torch.float32)
    block = random_block(0, 50, 1.0)
    keys, _ = codec.decode(codec.encode(block))
    project = SpectralProjector(codec.tier.key).project
    y, back = (project(k.reshape(50, -1), None) for k in (block.keys, keys))
    assert (y - back).abs().max() <= 0.5 + 0.1
