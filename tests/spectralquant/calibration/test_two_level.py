"""Bases in two levels: as good as dense ones, small on disk, and damaged factors are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spectralquant.calibration.basis.spectrum import FrequencyAnalyzer
from spectralquant.calibration.basis.two_level import TwoLevelForm, solve_two_levels, two_level_problems
from spectralquant.calibration.capture.statistics import SpanMoments
from spectralquant.errors import ProfileError
from spectralquant.profile.factors import IntegerRows, SmallForm, small_form_in, small_tensors

LAYERS, WIDTH = 6, 32
P = LAYERS * WIDTH


@pytest.fixture(scope="module")
def problem():
    """Keys that forty directions over all layers explain, and gradients that sixty do."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 40, generator=g) @ (torch.randn(40, P, generator=g) * torch.logspace(0, -2, 40)[:, None])
    x = x + 0.01 * torch.randn(3000, P, generator=g) + 1
    grads = torch.randn(3000, 60, generator=g) @ torch.randn(60, P, generator=g)
    moments = SpanMoments(P, P)
    moments.add(x, grads)
    return x - moments.mean.float(), moments


def solved(moments, **options):
    ((_, problem),) = two_level_problems(moments, WIDTH, None, metric=True)
    return solve_two_levels(problem, moments.mean.float(), TwoLevelForm(**options))


def weighted_error(x, metric, basis, rank):
    error = x - (x @ basis.analysis[:rank].T.float()) @ basis.synthesis[:, :rank].T.float()
    return float(((error @ metric) * error).sum() / len(x))


def test_two_levels_are_as_good_as_one_dense_basis(problem):
    x, moments = problem
    metric = moments.metric_matrix(0).float()
    dense = FrequencyAnalyzer().solve(moments.covariance(0), moments.metric_matrix(0), moments.mean)
    basis = solved(moments, dropped=1e-6)
    assert torch.allclose(basis.variance[:20], dense.variance[:20].float(), rtol=1e-2)
    for rank in (5, 10, 20):
        assert weighted_error(x, metric, basis, rank) <= 1.02 * weighted_error(x, metric, dense, rank)


def test_layers_alone_are_worse_than_two_levels(problem):
    """What the second level is for: correlation between layers."""
    x, moments = problem
    metric = moments.metric_matrix(0).float()
    parts = [
        FrequencyAnalyzer().solve(moments.covariance(0)[p, p], moments.metric_matrix(0)[p, p], moments.mean[p])
        for p in (slice(i, i + WIDTH) for i in range(0, P, WIDTH))
    ]
    error = x.clone()
    for i, basis in enumerate(parts):
        own = slice(i * WIDTH, (i + 1) * WIDTH)
        error[:, own] -= (x[:, own] @ basis.analysis[:3].T.float()) @ basis.synthesis[:, :3].T.float()
    alone = float(((error @ metric) * error).sum() / len(x))
    assert weighted_error(x, metric, solved(moments), 3 * LAYERS) < 0.7 * alone


def test_variance_is_kept_or_said_to_be_lost(problem):
    _, moments = problem
    total = solved(moments, dropped=0.0)
    cut = solved(moments, most=48)
    assert len(cut.variance) == 48 and cut.lost > 0
    assert float(cut.variance.sum()) + cut.lost == pytest.approx(float(total.variance.sum()), rel=0.02)


def test_integer_rows_are_as_fine_as_they_say():
    rows = torch.randn(40, 70)
    packed = IntegerRows.of(rows, 10)
    error = (packed.dense() - rows).abs().amax(1) / rows.abs().amax(1)
    assert packed.fine.dtype == torch.int16 and packed.coarse.dtype == torch.int8
    half = 0.505  # a step, and float32's own rounding: about 2**-23 of the largest, 0.004 steps of int16
    assert float(error[:10].max()) <= half / 32767 and float(error[10:].max()) <= half / 127
    index = torch.tensor([0, 3, 9, 10, 39])
    assert torch.equal(packed.picked(index).dense(), packed.dense()[index])


@pytest.fixture
def tensors(problem):
    basis = solved(problem[1])
    kept = basis.factors.picked(torch.arange(20))
    form = SmallForm((kept,), IntegerRows.of(torch.randn(P, 8), 0))
    return {"cold.key.ranks": torch.tensor([20]), **small_tensors("cold.key", form)}, form


def test_small_form_round_trip(tensors):
    named, form = tensors
    again = small_form_in("cold.key", named)
    for kind in ("analysis", "synthesis"):
        assert torch.equal(again.rows(kind), form.rows(kind)) and again.rows(kind).shape == (20, P)
    assert torch.equal(again.dense_predictor(), form.dense_predictor())
    size = sum(t.numel() * t.element_size() for t in named.values())
    assert size < 2 * 20 * P * 2 + 8 * P * 2 + 4 * P * P  # far below dense rows over all layers would be at real sizes


DAMAGE = {
    "cold.key.0.inner_ranks": lambda t: t + 1,
    "cold.key.0.outer_analysis.coarse": lambda t: t[:, :-1],
    "cold.key.0.outer_synthesis.fine": lambda t: t.float(),
    "cold.key.0.inner_analysis.scale": lambda t: t / 0,
    "cold.key.predictor.scale": lambda t: t[:-1],
    "cold.key.ranks": lambda t: t + 1,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_factors_are_refused(tensors, name):
    named = {**tensors[0], name: DAMAGE[name](tensors[0][name])}
    with pytest.raises(ProfileError, match="damaged"):
        small_form_in("cold.key", named)


def test_a_missing_factor_is_named(tensors):
    named = dict(tensors[0])
    del named["cold.key.0.outer_analysis.scale"]
    with pytest.raises(ProfileError, match=r"outer_analysis\.scale"):
        small_form_in("cold.key", named)


def test_truncation_counts_what_it_drops(problem):
    basis = solved(problem[1])
    short = replace(basis, factors=None).truncate(10)
    assert short.lost == pytest.approx(basis.lost + float(basis.variance[10:].sum()), rel=1e-5)


def test_rounded_rows_undo_each_other(problem):
    """Analysis is mended for the rounded synthesis, in the solved basis and in what a file holds of some of its rows."""
    _, moments = problem
    factors = solved(moments, dropped=1e-6, fine=0).factors
    raw = factors.outer_analysis.dense() @ factors.outer_synthesis.dense().T
    apart = lambda product: float((product - torch.eye(len(product))).abs().max())  # noqa: E731
    some = factors.picked(torch.arange(0, len(factors.outer_analysis), 2))
    for form in (factors, some):
        assert apart(form.outer("analysis") @ form.outer("synthesis").T) < 0.1 * apart(raw)
    assert apart(factors.rows("analysis") @ factors.rows("synthesis").T) < 0.2 * apart(raw)
