"""Plots in the terminal: round ticks, every point in sight, nothing wider than asked."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqcli.terminal.plot import MOST_TICKS, log_plot, log_ticks

POSITIVE = st.floats(1e-9, 1e9)


@given(POSITIVE, POSITIVE)
def test_ticks_are_round_and_few_and_at_the_range(one, other):
    low, high = sorted((one, other))
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= MOST_TICKS + 2 and ticks == sorted(set(ticks))
    assert all(re.fullmatch(r"[1-9](e[+-]\d+)?|[1-9]0*|0\.0*[1-9]", f"{tick:g}") for tick in ticks)
    assert ticks[0] <= high and ticks[-1] >= low


@pytest.mark.parametrize("width,height", [(60, 12), (72, 18)])
def test_points_are_where_they_belong(width, height):
    curves = {"first": [(1, 0.001), (10, 0.01), (100, 0.1)], "a second one": [(100, 0.001)]}
    lines = log_plot(curves, "payload ratio", "KL", width=width, height=height).plain.splitlines()
    assert max(map(len, lines)) <= width
    body = lines[: height - 2]
    place = lambda letter: [(row, line.index(letter)) for row, line in enumerate(body) if letter in line]  # noqa: E731
    (r0, c0), (r1, c1), (r2, c2) = place("A")
    assert r0 < r1 < r2 and c0 > c1 > c2 and abs((c0 - c1) - (c1 - c2)) <= 1, "a straight line on logarithmic axes"
    assert "B" in body[r2] and body[r2].index("B") == c0
    said = "\n".join(lines)
    assert "A first" in said and "B a second one" in said and "payload ratio" in said
    assert re.search(r"^ *0\.01┤", said, re.M) and re.search(r"\b10\b", lines[height - 2])


def test_a_single_point_and_many_methods():
    text = log_plot({f"method {i}": [(2 + i, 0.5)] for i in range(30)}, "x", "y", width=60, height=12).plain
    assert max(map(len, text.splitlines())) <= 60 and "Z method 25" in text
    assert "A only" in log_plot({"only": [(3, 0.5)]}, "x", "y", width=60, height=12).plain
