"""Sums merge and resume."""

import pytest
import torch

from spectralquant.calibration.basis.predictor import residual_covariance, solve_predictor
from spectralquant.calibration.capture.statistics import FeatureMoments, SpanMoments
from spectralquant.calibration.capture.symmetric import SymmetricSum


@pytest.mark.parametrize("width", [5, 1024, 1500], ids=["one tile", "full tile", "odd tiles"])
def test_symmetric_sum_equals_the_gram_matrix(width):
    x = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    total = SymmetricSum(width)
    total.add(x[:40])
    total.add(x[40:])
    assert torch.allclose(total.dense(), x.double().T @ x.double(), atol=1e-3)


@pytest.mark.parametrize("span", [12, 24], ids=["spans", "all"])
def test_two_halves_merge_to_the_whole(span):
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(500, 24, generator=generator) + 3, torch.randn(500, 24, generator=generator)
    whole, left, right = (SpanMoments(24, span) for _ in range(3))
    whole.add(x, g)
    left.add(x[:200], g[:200])
    right.add(x[200:], g[200:])
    left.merge(right)
    for i in range(24 // span):
        assert torch.allclose(left.covariance(i), whole.covariance(i), rtol=1e-5, atol=1e-5)
        assert torch.allclose(left.metric_matrix(i), whole.metric_matrix(i), rtol=1e-5, atol=1e-5)
    assert torch.allclose(left.mean, x.double().mean(0), atol=1e-6)


def test_state_round_trip_is_exact():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    a, b = SpanMoments(8, 4), SpanMoments(8, 4)
    a.add(x, x * 2)
    b.load_state("k", {k: v.clone() for k, v in a.state("k").items()})
    assert torch.equal(a.covariance(1), b.covariance(1)) and b.count == 50


def test_moments_of_different_shape_do_not_merge():
    with pytest.raises(ValueError, match="cannot be merged"):
        SpanMoments(8, 4).merge(SpanMoments(8, 8))


def test_predictor_recovers_a_linear_map_and_leaves_the_noise():
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(4000, 6, generator=generator) + 1
    true = torch.randn(6, 5, generator=generator)
    noise = 0.1 * torch.randn(4000, 5, generator=generator)
    x = f @ true + 2 + noise
    features, moments = FeatureMoments(6, 10), SpanMoments(5, 5)
    features.add(f, (x, x))
    moments.add(x, None)
    predictor, gram, cross = solve_predictor(features, moments, 0)
    assert torch.allclose(predictor.weight, true, atol=0.02)
    residual = residual_covariance(moments.covariance(0), predictor.weight, gram, cross)
    assert torch.allclose(residual.diagonal(), torch.full((5,), 0.01, dtype=torch.float64), rtol=0.2)
