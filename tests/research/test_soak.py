"""The soak's verdict, and the plain list it is held against; the soak itself runs in the serving environment."""

from __future__ import annotations

import pytest

from research.serving.soak import HELD, Plain, faults, growth

GOOD = {
    "memory_growth": 0.002,
    "hit_share": 0.61,
    "plain_lru_hit_share": 0.62,
    "most_bytes_in_store": 100,
    "budget_bytes": 100,
    "left_over_files": 0,
}


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        ({}, ""),
        ({"memory_growth": 0.05}, "memory grew by 5.0%"),
        ({"hit_share": 0.4}, "40.0% of the requests hit"),
        ({"hit_share": 0.9}, "90.0% of the requests hit"),
        ({"most_bytes_in_store": 120}, "120 bytes of 100"),
        ({"left_over_files": 2}, "2 temporary files"),
    ],
)
def test_what_should_not_be_is_said(worse, said):
    (line,) = faults(GOOD | worse) or [""]
    assert said in line and bool(said) == bool(line)


def test_growth_leaves_the_beginning_out():
    assert growth([50, 80, *[100] * 30]) == 0
    assert growth([100 + i for i in range(40)]) > 0.2


def test_a_plain_list_drops_what_was_used_least_recently():
    plain = Plain()
    assert not any(plain.use(i) for i in range(HELD))
    assert plain.use(0) and not plain.use(HELD) and plain.use(0) and not plain.use(1)
