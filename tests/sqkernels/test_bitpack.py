"""Bit packing loses nothing and takes exactly the bits it says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqkernels.bitpack import pack_codes, packed_bytes, unpack_codes


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 1000))
def test_round_trip(widths, tokens, seed):
    bits = torch.tensor(widths, dtype=torch.uint8)
    codes = torch.randint(0, 256, (tokens, len(widths)), generator=torch.Generator().manual_seed(seed))
    codes = (codes % (2 ** bits.long())).to(torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (tokens, -(-sum(widths) // 8)) and packed_bytes(bits) == packed.shape[1]
    assert torch.equal(unpack_codes(packed, bits), codes)


def test_wrong_arguments_are_refused():
    bits = torch.tensor([2, 3], dtype=torch.uint8)
    with pytest.raises(ValueError, match="does not fit"):
        pack_codes(torch.tensor([[4, 0]], dtype=torch.uint8), bits)
    with pytest.raises(ValueError, match="one width per component"):
        pack_codes(torch.zeros(1, 3, dtype=torch.uint8), bits)
    with pytest.raises(ValueError, match="expected 1"):
        unpack_codes(torch.zeros(1, 2, dtype=torch.uint8), bits)
    with pytest.raises(ValueError, match="at most 8"):
        pack_codes(torch.zeros(1, 1, dtype=torch.uint8), torch.tensor([9], dtype=torch.uint8))
