"""Tables, importance regression, codebooks and bit allocation fitted on data with known answers."""

import pytest
import torch

from spectralquant.calibration.cold.importance import fit_importance
from spectralquant.calibration.cold.tables import cluster_tables, code_length, symbol_histogram
from spectralquant.calibration.fixed.bits import CHOICES, MaskGenerator
from spectralquant.calibration.fixed.codebooks import fit_codebooks, fit_uniform_codebooks
from spectralquant.calibration.fixed.importance import Importance, token_importance
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


def even_error(x, points):
    """Squared errors `[N, T]` of the nearest of the points."""
    return (x[..., None] - points[:, None]).square().amin(-1)


def test_evenly_spaced_points_have_the_error_they_say_and_follow_what_is_skewed():
    x = torch.randn(3, 2000, generator=torch.Generator().manual_seed(1)).exp()
    for bits in (2, 4, 6):
        points, error = fit_uniform_codebooks(x, bits)
        assert torch.allclose(points.diff(dim=1), points.diff(dim=1)[:, :1].expand(-1, 2**bits - 1), rtol=1e-3)
        assert torch.allclose(even_error(x, points).mean(1), error, rtol=1e-2)
    centred = x.mean(1, keepdim=True) + (fit_uniform_codebooks(x, 4)[0].diff(dim=1)[:, :1] * (torch.arange(16) - 7.5))
    assert (fit_uniform_codebooks(x, 4)[1] < 0.9 * even_error(x, centred).mean(1)).all(), (
        "points need not lie about the mean"
    )


@pytest.mark.parametrize("bits", [2, 4])
def test_points_lie_where_tokens_that_matter_are(bits):
    generator = torch.Generator().manual_seed(2)
    sinks = torch.tensor([0.33, -0.71, 0.05])[:, None].expand(-1, 60)
    x = torch.cat([torch.randn(3, 3000, generator=generator), sinks], dim=1)
    weight = torch.cat([torch.ones(3000), torch.full((60,), 40.0)])
    weight /= weight.mean()
    plain, mattering = fit_uniform_codebooks(x, bits), fit_uniform_codebooks(x, bits, weight)
    before, after = even_error(x, plain[0]), even_error(x, mattering[0])
    assert torch.allclose((weight * after).mean(1), mattering[1], rtol=1e-2)
    assert (weight * after).mean() < 0.95 * (weight * before).mean()
    assert (after[:, 3000:].mean(1) < before[:, 3000:].mean(1)).all()


def test_importance_is_of_tokens_and_heads_and_bounded():
    gradients = torch.ones(50, 6)
    gradients[3, :2] = 1000.0
    gradients[40:] = 7.0
    far = torch.arange(50) < 40
    weight = token_importance(gradients, far, [torch.eye(2)] * 3, 0.5)
    assert weight.shape == (3, 50) and torch.allclose(weight.mean(1), torch.ones(3))
    assert weight[0].argmax() == 3 and weight[0, 3] < 51 * weight[0, 40]
    assert torch.allclose(weight[1], torch.ones(50)), "the same everywhere, and what is not far counts as the average"
    assert not token_importance(torch.zeros(5, 2), far[:5], [torch.eye(2)], 0.9).isnan().any()
    assert Importance(weight, 4).of(torch.tensor([0, 3, 4, 11])).equal(weight[[0, 0, 1, 2]])


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
