"""Tables, importance regression, codebooks and bit allocation fitted on data with known answers."""

import pytest
import torch

from spectralquant.calibration.cold.importance import fit_importance
from spectralquant.calibration.cold.tables import cluster_tables, code_length, symbol_histogram
from spectralquant.calibration.fixed.bits import CHOICES, MaskGenerator
from spectralquant.calibration.fixed.codebooks import fit_codebooks
from spectralquant.codec.cold.symbols import ALPHABET, ESCAPE
from spectralquant.errors import InputError


def laplace(count, scales, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(count, len(scales), generator=generator) - 0.5
    return (-torch.sign(u) * torch.log1p(-2 * u.abs().clamp(max=0.4999)) * torch.tensor(scales)).round().int()


def test_histogram_counts_symbols_by_class_and_escapes():
    symbols = torch.tensor([[0, 40], [1, -2], [0, 0]], dtype=torch.int32)
    histogram = symbol_histogram(symbols, torch.tensor([4, 4, 0]))
    assert (
        histogram.sum() == 6 and histogram[4, 1, ESCAPE] == 1 and histogram[0, 0, 15] == 1 and histogram[4, 1, 13] == 1
    )


def test_shared_tables_cost_little_more_than_own_tables():
    scales = torch.logspace(-0.7, 0.7, 120).tolist()
    symbols = laplace(4000, scales)
    classes = torch.full((4000,), 4)
    histogram = symbol_histogram(symbols, classes)
    choice, tables = cluster_tables(histogram, 48)
    own = histogram[4] / histogram[4].sum(1, keepdim=True)
    ideal = -(histogram[4] * own.clamp_min(1e-12).log2()).sum().item()
    shared = code_length(histogram, choice, tables) - 8 * histogram[..., ESCAPE].sum().item()
    assert 1.0 <= shared / ideal < 1.02
    assert tables.shape == (48, ALPHABET) and torch.allclose(tables.sum(1), torch.ones(48), atol=1e-5)
    entropy = -(tables * tables.log2()).sum(1)
    assert bool((entropy.diff() >= -1e-6).all())


def test_importance_regression_recovers_a_linear_law_and_ignores_position():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3000, 5, generator=generator)
    truth = torch.randn(5, 2, generator=generator)
    group = torch.arange(3000) % 3
    noise = 0.1 * torch.randn(3000, 2, generator=generator)
    model, r2 = fit_importance(features, features @ truth + noise + 100.0 * group[:, None], group)
    assert torch.allclose(model.weight, truth, atol=0.1) and min(r2) > 0.95


def test_codebooks_beat_gaussian_ones_on_skewed_data():
    x = torch.rand(3, 5000, generator=torch.Generator().manual_seed(0)) ** 4
    points, error = fit_codebooks(x, 3)
    index = (x[:, :, None] - points[:, None]).abs().argmin(-1)
    measured = (x - points.gather(1, index)).square().mean(1)
    assert torch.allclose(measured, error, rtol=1e-2)
    gaussian = torch.tensor([-2.152, -1.344, -0.756, -0.245, 0.245, 0.756, 1.344, 2.152])
    fixed = x.mean() + x.std() * gaussian
    assert error.max() < 0.6 * (x[..., None] - fixed).abs().amin(-1).square().mean()


def test_more_bits_never_hurt_and_zero_bits_is_the_variance():
    x = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0))
    errors = [fit_codebooks(x, b)[1].mean().item() for b in (0, 1, 2, 3, 4, 6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(1, rel=0.1) and errors[1] == pytest.approx(1 - 2 / torch.pi, rel=0.05)


def test_allocation_keeps_the_budget_and_follows_the_variance():
    x = torch.randn(2000, 60, generator=torch.Generator().manual_seed(0))
    generator = MaskGenerator(x, torch.logspace(2, -3, 60))
    for budget in (0.5, 2.0, 3.3):
        mask = generator.generate(budget)
        assert mask.bits_per_token <= budget * 60 and mask.bits_per_token > 0.85 * budget * 60
        assert mask.bits[0] >= mask.bits[30] >= mask.bits[59]
        assert set(mask.bits.tolist()) <= set(CHOICES)
        assert mask.binary.sum() == (mask.bits > 0).sum()
    with pytest.raises(InputError, match="outside what fixed-rate tiers offer"):
        generator.generate(9)
