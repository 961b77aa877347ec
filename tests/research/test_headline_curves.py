"""Curves are walked to a KL: between two neighbours where there are such, else to the last budget on that side."""

import itertools

import pytest

from research.headline.curves import Budgets, Curve, at_kl, walk
from research.headline.parts import RIVALS, HeadlineStudy
from spectralquant.methods.registry import check, parse
from spectralquant.results.quality import MethodRow

KL = 0.01


def row(name, ratio, kl):
    same = {"model": "m", "context": 2048, "n_tokens": 9, "n_windows": 1, "whole_cache_ratio": 2.0, "delta_ppl": 0.1}
    return MethodRow(method=name, options={"ratio": ratio}, payload_ratio=ratio, kl_nats=kl, mode="streaming", **same)


def curve(name, budgets, first, scale):
    """KL grows as the square of the ratio; `scale` is the ratio at which it is KL."""
    return Curve(name, budgets, first, lambda ratio: (row(name.partition(":")[0], ratio, KL * (ratio / scale) ** 2), 7))


@pytest.mark.parametrize(
    "scale, measured, ratio",
    [
        (30, {20, 40}, 30),
        (50, {20, 40, 80}, 50),
        (12, {20, 10}, 12),
        (7, {20, 10, 5}, 7),
        (3, {20, 10, 5}, None),
        (90, {20, 40, 80}, 80),
        (20, {20, 40}, 20),
    ],
)
def test_a_curve_is_walked_until_the_kl_is_between_neighbours(scale, measured, ratio):
    one = curve("kvtc", (5, 10, 20, 40, 80), 20, scale)
    walk([one], KL, lambda rows: rows)
    assert set(one.rows) == set(one.shared_bytes) == measured
    assert one.ratio(KL) == (None if ratio is None else pytest.approx(ratio))


def test_curves_take_their_steps_together():
    calls = []

    def measure(rows):
        calls.append([r.method for r in rows])
        return rows

    curves = [curve("a", (5, 10, 20, 40), 5, 30), curve("b", (5, 10, 20, 40), 10, 15), curve("c", (8,), 8, 30)]
    walk(curves, KL, measure)
    assert calls == [["a", "b", "c"], ["a", "b"], ["a"], ["a"]]


def test_of_a_methods_curves_the_best_is_timed():
    curves = [curve("t:bits={}", (5, 10, 20), 5, 11), curve("t:fine", (5, 10, 20), 5, 14), curve("u", (5, 10), 5, 1)]
    walk(curves, KL, lambda rows: rows)
    assert at_kl(curves, KL) == {"t": ("t:fine", 10), "u": ("u", 5)}


def test_the_studys_rivals_can_be_built_at_every_budget():
    """Budgets run from most bytes to fewest, and each is one that the method takes."""
    for rival in RIVALS:
        assert rival.first in rival.budgets
        bytes_fall = rival.budgets if rival.name == "kvtc" else rival.budgets[::-1]
        assert list(bytes_fall) == sorted(bytes_fall)
        for budget in rival.budgets:
            [spec] = parse(rival.label(budget))
            check(spec)
            assert spec.name == rival.name
    assert {Budgets.name.fget(rival) for rival in RIVALS} >= {"kvtc", "kivi", "turboquant", "h2o", "snapkv"}
    study = HeadlineStudy()
    for ratios in (study.ratios, study.other_ratios):
        assert all(1.5 < b / a <= 2 for a, b in itertools.pairwise(ratios))
