"""The timing rule: how often it errs, Holm's correction, and what it refuses."""

import numpy as np
import pytest

from spectralquant.gate.simulation import simulate
from spectralquant.gate.statistics import compare_times, holm
from spectralquant.gate.verdict import timing_verdict


@pytest.mark.slow
def test_error_rates_over_a_thousand_runs():
    rows = simulate(runs=1000, samples=10, limit=0.05)["rows"]
    assert len(rows) == 8
    for row in rows:
        if row["change"] == 0:
            assert row["regression"] < 0.01, row
        if row["noise"] == 0.03 and row["change"] == 0.10:
            assert row["regression"] >= 0.90, row
        if row["noise"] == 0.08:
            assert row["pass"] < 0.01, row
            assert row["change"] > 0 or row["inconclusive"] > 0.98, row
        if row["noise"] == 0.03 and row["change"] == 0:
            assert row["pass"] > 0.85, row


def test_noise_says_how_many_samples_would_decide():
    generator = np.random.default_rng(0)
    before, now = (1 + 0.08 * generator.standard_normal(10) for _ in range(2))
    found = timing_verdict(before, now, 0.05, paired=False)
    assert found.verdict == "inconclusive"
    needed = int(found.why.split("about ")[1].split()[0])
    assert 25 < needed < 90
    more = [1 + 0.08 * generator.standard_normal(2 * needed) for _ in range(2)]
    assert timing_verdict(*more, 0.05, paired=False).verdict == "pass"


def test_paired_samples_cancel_the_machines_drift():
    generator = np.random.default_rng(1)
    drift = np.exp(np.linspace(0, 0.25, 20))
    before, now = (
        drift * (1 + 0.01 * generator.standard_normal(20)),
        1.08 * drift * (1 + 0.01 * generator.standard_normal(20)),
    )
    paired, apart = (compare_times(before, now, 0.05, paired=p) for p in (True, False))
    assert paired.ratio == pytest.approx(1.08, abs=0.02)
    assert paired.bound > apart.bound


def test_few_samples_and_wild_ones_are_inconclusive():
    assert "at least 7" in timing_verdict([1.0] * 6, [1.0] * 10, 0.05, paired=False).why
    wild = [1.0, 2.0, 1.0, 3.0, 1.0, 1.5, 1.0, 2.0]
    found = timing_verdict(wild, wild, 0.05, paired=False)
    assert found.verdict == "inconclusive" and "vary by" in found.why


def test_equal_times_pass():
    assert timing_verdict([1.0] * 10, [1.0] * 10, 0.05, paired=True).verdict == "pass"


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == [True, False, False]
    assert holm([0.01, 0.02, 0.03]) == [True, True, True]
    assert holm([]) == []
    # Holm 1979: 0.05/3 is not passed, so nothing is rejected although 0.04 < 0.05.
    assert holm([0.02, 0.04, 0.9]) == [False, False, False]
