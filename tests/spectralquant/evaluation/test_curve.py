"""Reading curves: interpolation, bars, and factors that are never overstated."""

import pytest

from research.cold import ColdStudy, summarize
from spectralquant.evaluation.curve import best_under_bar, ratio_at_kl, times_smaller
from spectralquant.results.quality import MethodRow


def row(ratio, kl, dppl=0.0, **more):
    figures = {"payload_ratio": ratio, "whole_cache_ratio": ratio / 3, "kl_nats": kl, "delta_ppl": dppl}
    return MethodRow(**figures | more)


CURVE = [row(10, 0.001), row(40, 0.004, 0.05), row(90, 0.012, 0.2)]


def test_interpolation_is_in_logarithms_and_never_outside():
    assert ratio_at_kl(CURVE, 0.002) == pytest.approx(20)
    assert ratio_at_kl(CURVE, 0.02) is None and ratio_at_kl(CURVE[:1], 0.001) is None


def test_the_bar_needs_both_figures_of_a_measured_row():
    assert best_under_bar(CURVE)["payload_ratio"] == 40
    assert best_under_bar(CURVE, dppl=0.3)["payload_ratio"] == 90
    assert best_under_bar(CURVE, kl=1e-5) is None


def test_factors_are_interpolated_or_understated():
    theirs = [row(4, 0.002), row(8, 0.02)]
    assert times_smaller(CURVE, theirs, 0.004) == pytest.approx(40 / ratio_at_kl(theirs, 0.004))
    assert times_smaller(CURVE, theirs, 0.015) == pytest.approx(90 / ratio_at_kl(theirs, 0.015))
    assert times_smaller(CURVE, theirs, 0.0005) is None


def test_summary_of_the_cycle_mean_follows_from_bytes():
    rows = [
        row(
            80,
            0.01,
            0.1,
            method="spectral",
            options={"exact_bits": 16},
            context=8192,
            coded_tokens=2 * 8060,
            coded_bytes=2 * 8060 * 288,
            n_windows=2,
            fp16_bytes=8192 * 23040,
            resident_bytes=8060 * 288 + 132 * 25000,
        )
    ]
    found = summarize(rows, ColdStudy())
    mean = found["whole_cache_8192_exact16_mean_over_block_cycle"]
    exact = 4 + 128 + 63.5
    assert mean == pytest.approx(8192 * 23040 / (exact * 25000 + (8192 - exact) * 288)), "with sums about recent tokens"
