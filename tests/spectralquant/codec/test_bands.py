"""Bands of 8, 4 and 2 bits: nothing is lost, and reading without masks gives the same products."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralquant.codec.hot.bands import BandLayout


def coded(widths: list[int], tokens: int, seed: int) -> tuple[BandLayout, torch.Tensor, torch.Tensor]:
    """A layout, codes `[tokens, R]` in band order, and their bytes component-major as one page."""
    bits = torch.tensor(widths, dtype=torch.uint8)
    layout = BandLayout(bits)
    codes = torch.randint(0, 256, (tokens, len(widths)), generator=torch.Generator().manual_seed(seed))
    codes = (codes % 2 ** bits.long())[:, layout.order].to(torch.uint8)
    return layout, codes, layout.pack(codes).T[None]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([2, 4, 8]), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 1000))
def test_unpacked_codes_are_the_packed_ones(widths, tokens, seed):
    layout, codes, page = coded(widths, tokens, seed)
    order = layout.padded_order()
    found = layout.unpack(page)[0].T
    assert found.dtype == torch.uint8
    assert torch.equal(found[:, order >= 0], codes[:, order[order >= 0]])
    assert not found[:, order < 0].any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([2, 4, 8]), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 1000))
def test_shifted_bytes_read_by_shifted_rows_are_the_codes_read_by_the_rows(widths, tokens, seed):
    layout, _, page = coded(widths, tokens, seed)
    order = layout.padded_order()
    rows = torch.randn(len(order), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows[order < 0] = 0
    want = layout.unpack(page)[0].double().T @ rows
    found = layout.shifted(page)[0].double().T @ layout.shifted_rows(rows)
    assert torch.allclose(found, want, atol=1e-9)
