"""The cases that compute-sanitizer runs are all kernels, and right."""

import pytest
from sanitize import LIMIT, cases

CASES = dict(cases())


@pytest.mark.parametrize("name", CASES)
def test_case_is_right(name):
    assert CASES[name]() < LIMIT


def test_every_operator_is_there():
    operators = {name.split(",")[0] for name in CASES}
    assert operators == {
        "dense_decode",
        "spectral_compress",
        "spectral_decode",
        "spectral_index_decode",
        "spectral_reconstruct",
    }
