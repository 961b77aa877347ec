"""The weighted transform does what method.md section 2 says."""

import pytest
import torch

from spectralquant.calibration.basis.rank import NyquistRankSelector, RankAllocator
from spectralquant.calibration.basis.spectrum import FrequencyAnalyzer, gaussian_rate, metric_factor
from spectralquant.errors import InputError

P, N = 48, 40_000


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    mix = draw(P, P) * torch.logspace(0.5, -1.5, P, dtype=torch.float64)
    weight = draw(P, P) * torch.logspace(0.5, -1, P, dtype=torch.float64)[torch.randperm(P, generator=generator)]
    x = draw(N, P) @ mix.T
    return x, mix @ mix.T, weight @ weight.T


def weighted_error(error, metric):
    factor = metric_factor(metric, P, 0.01, metric)
    return (error @ factor.T).square().sum(1).mean().item()


def test_distortion_is_step_squared_over_twelve_per_active_component(problem):
    x, covariance, metric = problem
    basis = FrequencyAnalyzer().solve(covariance, metric, torch.zeros(P, dtype=torch.float64))
    step = basis.variance[11].sqrt().item() / 3
    y = x @ basis.analysis.T
    active = basis.variance.sqrt() > 2 * step
    coded = torch.where(active, (y / step).round() * step, y)
    measured = weighted_error(coded @ basis.synthesis.T - x, metric)
    assert measured == pytest.approx(int(active.sum()) * step**2 / 12, rel=0.03)


def test_synthesis_inverts_analysis(problem):
    _, covariance, metric = problem
    basis = FrequencyAnalyzer().solve(covariance, metric, torch.zeros(P, dtype=torch.float64))
    assert torch.allclose(basis.synthesis @ basis.analysis, torch.eye(P, dtype=torch.float64), atol=1e-8)


def test_coefficients_are_uncorrelated_and_sorted(problem):
    _x, covariance, metric = problem
    basis = FrequencyAnalyzer().solve(covariance, metric, torch.zeros(P, dtype=torch.float64))
    assert bool((basis.variance.diff() <= 1e-9).all())
    spread = basis.analysis @ covariance @ basis.analysis.T
    assert torch.allclose(spread, torch.diag(basis.variance), atol=1e-6 * basis.variance[0].item())


@pytest.mark.parametrize("rank", [4, 12, 24])
def test_beats_plain_pca_at_equal_rank(problem, rank):
    x, covariance, metric = problem
    errors = []
    for chosen in (metric, None):
        basis = FrequencyAnalyzer().solve(covariance, chosen, torch.zeros(P, dtype=torch.float64)).truncate(rank)
        errors.append(weighted_error(x @ basis.analysis.T @ basis.synthesis.T - x, metric))
    assert errors[0] < 0.9 * errors[1]


def test_equal_input_gives_equal_output(problem):
    _, covariance, metric = problem
    a, b = (FrequencyAnalyzer().solve(covariance, metric, torch.zeros(P)) for _ in range(2))
    assert torch.equal(a.analysis, b.analysis)


def test_gaussian_rate_matches_a_measured_entropy():
    y = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.7
    counts = torch.bincount((y / 0.8).round().long() + 40).double()
    p = counts[counts > 0] / len(y)
    assert gaussian_rate(torch.tensor([1.7**2]), 0.8).item() == pytest.approx(-(p * p.log2()).sum().item(), abs=0.01)


def test_allocator_meets_its_budget_and_refuses_nonsense():
    spectra = [torch.logspace(2, -3, 100), torch.logspace(1, -4, 100)]
    allocator = RankAllocator(spectra)
    step = allocator.step_for_bits(0.7, 200)
    assert allocator.rate(step, 200) == pytest.approx(0.7, rel=1e-3)
    with pytest.raises(InputError, match="must be positive"):
        allocator.step_for_bits(0, 200)


def test_rank_counts_components_above_the_water_level():
    variance = torch.tensor([[[4.0, 1.0, 0.1, 1e-4]]])
    step = (12 * 0.05) ** 0.5
    assert NyquistRankSelector(step).ranks(variance, torch.zeros(1, 1)).item() == 3


def test_rank_of_a_head_without_gradients_follows_its_entropy():
    variance = torch.ones(5, 1, 8)
    variance[:4] *= torch.tensor([1.0, 0.0, 0.0, 0.0])[:, None, None] * 0 + 1
    for i in range(4):
        variance[i, 0, 2 * i + 1 :] = 1e-6
    variance[4] = 0
    entropy = torch.tensor([[1.0], [2.0], [3.0], [4.0], [2.5]])
    ranks = NyquistRankSelector(0.1).ranks(variance, entropy)
    assert ranks[:4, 0].tolist() == [1, 3, 5, 7]
    assert ranks[4, 0].item() == 4
